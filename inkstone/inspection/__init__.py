"""Looking inside: what a model is given, and what it makes of it."""
