"""What to train, and what it will cost in time, memory and loss."""
