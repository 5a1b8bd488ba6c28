"""One file a task: what an example is, how it becomes a batch, its loss and its scores."""
