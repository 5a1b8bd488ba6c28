"""What the loop asks of the data: endless batches, and a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, Self

import torch


class Batch(Protocol):
    """Rows that make one optimizer step, or a part of one."""

    @property
    def n_targets(self) -> int:
        """What the loss is divided by: tokens or examples with something to predict."""
        ...

    def __len__(self) -> int:
        """Rows."""
        ...

    def split(self, rows: int) -> Iterator[Self]:
        """Micro-batches of at most `rows` rows."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        ...


class Stream(Protocol):
    """Endless batches, the same ones for the same position."""

    def __next__(self) -> Any:
        """The next `Batch`."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        ...

    def state(self) -> dict[str, Any]:
        """The position, ready for JSON."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        ...
