"""What a run tells while it trains: hooks, and the hooks that write log.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inkstone import registry
from inkstone.files import complete_lines, write_atomic


@dataclass(frozen=True)
class StepInfo:
    """One optimizer step.

    Attributes:
        step: Steps done, from 1.
        max_steps: Steps in all, None while that is still open.
        loss: Nats per target token.
        lr_multiplier: Share of the base learning rates.
        grad_norm: L2 norm of all gradients before clipping.
        tokens: Target tokens seen so far.
        tokens_per_s: Rate since the last report.
        mfu: Share of the machine's measured matmul peak, 0 to 1; NaN when unknown.
        epoch: Passes over the data.
        elapsed_s: Training time so far, earlier sessions included.
        remaining_s: Estimate of the time left; NaN when unknown.
    """

    step: int
    max_steps: int | None
    loss: float
    lr_multiplier: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    mfu: float
    epoch: float
    elapsed_s: float
    remaining_s: float


class Hook:
    """Told what happens; every method may be left out."""

    def on_step(self, info: StepInfo) -> None:
        """After every `log_every` steps, and after the first and the last."""

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation."""

    def on_message(self, text: str) -> None:
        """A sentence that the user should see."""

    def on_end(self) -> None:
        """When the loop ends, however it ends."""


class JsonLog(Hook):
    """Appends one JSON object a line to log.jsonl; a full disk does not stop the training."""

    def __init__(self, path: Path, from_step: int = 0) -> None:
        self.path = path
        self.broken: str | None = None
        if path.exists():  # what came after the checkpoint that we continue from will come again
            kept = [x for x in complete_lines(path) if json.loads(x)["step"] <= from_step]
            write_atomic(path, "".join(kept))

    def on_step(self, info: StepInfo) -> None:
        self._write({"kind": "step", **asdict(info)})

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        self._write({"kind": "eval", "step": step, **scores})

    def _write(self, row: dict[str, Any]) -> None:
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")
            self.broken = None
        except OSError as error:
            self.broken = f"cannot write {self.path}: {error.strerror}; training goes on"


class TensorBoard(Hook):
    """Writes scalars for TensorBoard (extra `track`)."""

    def __init__(self, folder: Path) -> None:
        module = registry.extra("torch.utils.tensorboard", "track")
        self.writer = module.SummaryWriter(str(folder))

    def on_step(self, info: StepInfo) -> None:
        for name in ("loss", "lr_multiplier", "grad_norm", "tokens_per_s", "mfu"):
            self.writer.add_scalar(f"train/{name}", getattr(info, name), info.step)

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(f"eval/{name}", value, step)

    def on_end(self) -> None:
        self.writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All complete rows of a log.jsonl."""
    return [json.loads(line) for line in complete_lines(path)] if path.exists() else []
