"""What a run tells to whoever watches it. The pipeline never prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inkstone.planning.plan import Choice
    from inkstone.training.log import StepInfo


class Observer:
    """Told of stages, choices and training steps; every method may be left out."""

    def stage(self, name: str) -> None:
        """A stage begins."""

    def progress(self, done: int, total: int | None, unit: str) -> None:
        """The running stage has done so much (the `Progress` protocol)."""

    def stage_done(self, name: str, line: str, seconds: float, *, reused: bool = False) -> None:
        """A stage ended; `line` is its one-line result, `reused` says it was not run again."""

    def choices(self, choices: Sequence[Choice]) -> None:
        """Settings were resolved."""

    def note(self, text: str) -> None:
        """A sentence that the user should see."""

    def step(self, info: StepInfo) -> None:
        """Training advanced."""

    def evaluated(self, step: int, scores: dict[str, float]) -> None:
        """Held-out text was scored during training."""

    def training_ended(self) -> None:
        """The training loop is over, however it ended."""

    def result(self, result: dict[str, Any]) -> None:
        """The run is complete."""
