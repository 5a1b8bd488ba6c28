"""Files to documents: read, normalise, drop duplicates, hold some out."""
