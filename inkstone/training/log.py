"""What a run tells while it trains: hooks, and the hooks that write log.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
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
        lr: Learning rate of AdamW; Muon's moves in proportion.
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
    lr: float
    grad_norm: float
    tokens: int
    tokens_per_s: float
    mfu: float
    epoch: float
    elapsed_s: float
    remaining_s: float


class Hook:
    """Told what happens; every method may be left out."""

    def on_gradients(self, scale: float) -> None:
        """Before every update: the parameters hold gradients of `scale` times the mean loss."""

    def on_update(self, done: float) -> None:
        """After every update of the weights; `done` is the share of the run that is behind."""

    def on_step(self, info: StepInfo) -> None:
        """After every `log_every` steps, and after the first and the last."""

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        """After an evaluation."""

    def on_save(self, step: int, checkpoint: Path) -> None:
        """After a checkpoint is safely on the disk."""

    def on_message(self, text: str) -> None:
        """A sentence that the user should see."""

    def on_end(self) -> None:
        """When the loop ends, however it ends."""


class JsonLog(Hook):
    """Appends one JSON object a line to log.jsonl.

    Values that are not finite become null. A log that cannot be written (the disk is full) does not
    stop the training: `warn` is called once, and writing goes on as soon as it can.

    Args:
        path: The file; rows after `from_step` are dropped, for they will come again.
        from_step: Where this session begins.
        warn: Gets one sentence.
    """

    def __init__(self, path: Path, from_step: int, warn: Callable[[str], None]) -> None:
        self.path, self.warn = path, warn
        self._warned = False
        self._guarded(lambda: self._rewind(from_step))

    def on_step(self, info: StepInfo) -> None:
        self._append({"kind": "step", **asdict(info)})

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        self._append({"kind": "eval", "step": step, **scores})

    def _append(self, row: dict[str, Any]) -> None:
        clean = {
            k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()
        }

        def write() -> None:
            with open(self.path, "ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    torn = file.read(1) != b"\n"  # a full disk or a crash cut the last row short
                else:
                    torn = False
                file.write(b"\n" * torn + json.dumps(clean).encode() + b"\n")

        self._guarded(write)

    def _rewind(self, from_step: int) -> None:
        if self.path.exists():
            kept = [row for row in read_log(self.path) if row["step"] <= from_step]
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            if not self._warned:
                self.warn(f"cannot write {self.path} ({error.strerror}); training goes on")
            self._warned = True


class TensorBoard(Hook):
    """Writes scalars for TensorBoard (extra `track`); hides those after `from_step`."""

    def __init__(self, folder: Path, from_step: int) -> None:
        registry.extra("tensorboard", "track")
        module = registry.extra("torch.utils.tensorboard", "track")
        self.writer = module.SummaryWriter(str(folder), purge_step=from_step + 1)

    def on_step(self, info: StepInfo) -> None:
        for name in ("loss", "lr", "grad_norm", "tokens_per_s", "mfu"):
            self.writer.add_scalar(f"train/{name}", getattr(info, name), info.step)

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            self.writer.add_scalar(f"eval/{name}", value, step)

    def on_end(self) -> None:
        self.writer.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a log.jsonl; what a crash tore is passed over."""
    rows = []
    for line in complete_lines(path) if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows
