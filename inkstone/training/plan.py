"""When the learning rate decays and when the run ends.

A run of `max_steps` knows both from the start. A run of `minutes` settles its end late, from the
speed it really had, and writes each decision to schedule.json before the first step that depends on
it: a run that was killed and resumed repeats the same rates bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path

from inkstone.errors import CheckpointError
from inkstone.files import write_atomic
from inkstone.training.config import TrainingConfig
from inkstone.training.schedule import cosine, wsd

CALIBRATION_STEPS = 20  # a cosine run of `minutes` fixes its length after this many measured steps
DRIFT = 0.02  # a decay is stretched or shortened when its end would miss the budget by this share


class Plan:
    """The schedule of one run.

    Args:
        config: Its settings; `minutes` or `max_steps` is set (if both, the earlier end counts).
        path: schedule.json.
    """

    def __init__(self, config: TrainingConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.max_steps = config.max_steps
        self.knots: list[tuple[int, float]] = []  # (step, multiplier): the decay, piecewise linear
        self.decided_at = -1
        if config.max_steps is not None and config.schedule == "wsd":
            start = round(config.max_steps * (1 - config.decay_fraction))
            self.knots = [(start, 1.0), (config.max_steps, config.min_lr_ratio)]
        if path.exists():
            self._read()

    def multiplier(self, step: int) -> float:
        """Share of the base learning rate at `step` (from 0)."""
        c = self.config
        if c.schedule == "cosine":
            if self.max_steps is None:
                return min(1.0, (step + 1) / max(1, c.warmup_steps))
            return cosine(
                step, warmup=c.warmup_steps, max_steps=self.max_steps, min_ratio=c.min_lr_ratio
            )
        warm = wsd(step, warmup=c.warmup_steps, decay_start=None, max_steps=None, min_ratio=0.0)
        return warm * self._decay(step)

    def update(self, step: int, elapsed_s: float, session_step_s: float) -> None:
        """Decide, if it is time to; called before `step` (from 0).

        Args:
            step: The step about to be taken.
            elapsed_s: Training time so far, in all sessions.
            session_step_s: Seconds a step takes now, evaluations and saving included.
        """
        c = self.config
        if c.minutes is None or step <= self.decided_at or step == 0:
            return
        budget = c.minutes * 60
        left = max(1, round((budget - elapsed_s) / session_step_s))
        if c.max_steps is not None:
            left = max(1, min(left, c.max_steps - step))
        if c.schedule == "cosine":
            if self.max_steps is None and step >= max(CALIBRATION_STEPS, c.warmup_steps):
                self._decide(step, step + left, [])
            return
        if not self.knots:
            if elapsed_s >= (1 - c.decay_fraction) * budget:
                self._decide(step, step + left, [(step, 1.0), (step + left, c.min_lr_ratio)])
            return
        start, end = self.knots[0][0], self.knots[-1][0]
        if c.max_steps is not None and end == c.max_steps and step + left >= end:
            return
        quarter = max(1, (end - start) // 4)
        drift = abs((end - step) * session_step_s - (budget - elapsed_s))
        if step - self.decided_at >= quarter and start < step < end and drift > DRIFT * budget:
            past = [k for k in self.knots if k[0] < step]
            tail = [(step, self._decay(step)), (step + left, c.min_lr_ratio)]
            self._decide(step, step + left, past + tail)

    def remaining_s(self, step: int, elapsed_s: float, step_s: float) -> float:
        """Estimate of the training time left."""
        by_steps = (self.max_steps - step) * step_s if self.max_steps is not None else float("inf")
        by_time = (self.config.minutes or float("inf")) * 60 - elapsed_s
        return max(0.0, by_steps if self.max_steps is not None else by_time)

    def _decay(self, step: int) -> float:
        if not self.knots or step < self.knots[0][0]:
            return 1.0
        for (a, high), (b, low) in zip(self.knots, self.knots[1:], strict=False):
            if step < b:
                return high + (low - high) * (step - a) / (b - a)
        return self.knots[-1][1]

    def _decide(self, step: int, max_steps: int, knots: list[tuple[int, float]]) -> None:
        self.decided_at, self.max_steps, self.knots = step, max_steps, knots
        content = {"decided_at": step, "max_steps": max_steps, "knots": knots}
        write_atomic(self.path, json.dumps(content))

    def _read(self) -> None:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            self.decided_at, self.max_steps = int(raw["decided_at"]), int(raw["max_steps"])
            self.knots = [(int(s), float(m)) for s, m in raw["knots"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self.path} is damaged: {error}", fix="start again in a new folder"
            ) from error
