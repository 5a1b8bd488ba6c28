"""The training loop, its optimizers and schedules, and the state that makes it resumable."""
