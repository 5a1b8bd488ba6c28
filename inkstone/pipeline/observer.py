"""What a run tells to whoever watches it. The pipeline never prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inkstone.training.log import Hook, StepInfo

if TYPE_CHECKING:
    from inkstone.planning.plan import Choice


class Observer:
    """Told of stages, choices and training steps; every method may be left out.

    Attributes:
        unit: What training counts, in the plural.
    """

    unit = "tokens"

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


class Relay(Hook):
    """Passes what the training loop tells on to the observer."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def on_step(self, info: StepInfo) -> None:
        self.observer.step(info)

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        self.observer.evaluated(step, scores)

    def on_message(self, text: str) -> None:
        self.observer.note(text)
