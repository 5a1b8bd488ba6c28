"""Token ids on disk, and the batches that training and evaluation draw from them."""
