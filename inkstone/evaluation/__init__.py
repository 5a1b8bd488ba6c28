"""How good a model is: perplexity and bits per byte, beside baselines, and whether it ends."""
