"""Layers that model files are written with: linear maps, norms, positions, attention, cache, loss."""
