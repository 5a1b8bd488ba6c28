"""States of a recurrent decoder, so that a new token costs one step."""

from __future__ import annotations

import torch
from torch import Tensor

from inkstone.errors import ModelError


class StateHistory:
    """The state after every token read so far; used like the cache of a Transformer.

    A state is a tuple of tensors [B, ...]. Earlier ones are kept as they were, with the number of
    reorderings that had come before, so that going back is exact and going on copies nothing.

    Args:
        batch: Rows B.
        capacity: Most tokens a row.
    """

    def __init__(self, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.state: tuple[Tensor, ...] = ()
        self._history: list[tuple[tuple[Tensor, ...], int]] = []
        self._moves: list[Tensor] = []

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return len(self._history)

    def check(self, n_new: int) -> None:
        """Whether `n_new` more tokens fit.

        Raises:
            ModelError: They do not.
        """
        if self.length + n_new > self.capacity:
            raise ModelError(
                f"the cache holds {self.capacity} tokens; {self.length} are in use and "
                f"{n_new} more do not fit",
                fix="make the cache larger or the prompt shorter",
            )

    def append(self, state: tuple[Tensor, ...]) -> None:
        """Take the state after one more token."""
        self.state = state
        self._history.append((state, len(self._moves)))

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was: beams, or (fewer rows) dropping finished ones."""
        self.state = tuple(part[rows] for part in self.state)
        self._moves.append(rows)
        self.batch = len(rows)

    def truncate(self, length: int) -> None:
        """Forget all tokens from `length` on."""
        assert 0 <= length <= self.length
        del self._history[length:]
        self.state, done = self._history[-1] if length else ((), 0)
        for rows in self._moves[done:]:
            self.state = tuple(part[rows] for part in self.state)


def last_columns(mask: Tensor | None, n: int) -> Tensor | None:
    """[B, n] bool of a mask [B, past + n] that is True (or 1) at tokens; None where all are."""
    if mask is None:
        return None
    real = mask[:, mask.shape[1] - n :].bool()
    return None if bool(torch.all(real)) else real
