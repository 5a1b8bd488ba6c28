"""Layers that model files are written with: linear maps, norms, attention, cache, loss."""
