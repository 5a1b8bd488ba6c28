"""When the learning rate decays and when the run ends.

A run of `max_steps` knows both from the start. A run of `minutes` settles them late, from the speed
it really had, and writes each decision to schedule.json before the first step that depends on it: a
run that was killed and resumed repeats the same rates bit for bit.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

from inkstone.errors import CheckpointError
from inkstone.files import write_atomic
from inkstone.training import schedule
from inkstone.training.config import TrainingConfig

CALIBRATION_STEPS = 20  # no decision before so many steps have been timed,
CALIBRATION_SHARE = 0.05  # unless so much of the time has gone by
DRIFT_SHARE, DRIFT_S = 0.005, 0.2  # a decay that would miss the end by more than both is re-timed


@dataclass(frozen=True)
class Leg:
    """From `step` on, progress rises evenly from `progress` to 1 at `end`."""

    step: int
    progress: float
    end: int

    def at(self, step: int) -> float:
        """Progress at `step`."""
        return schedule.progress(step, start=self.step, end=self.end, at_start=self.progress)


class Plan:
    """The schedule of one run: a warm-up, then the legs of its decay.

    Args:
        config: Its settings; `minutes` or `max_steps` is set (if both, the earlier end counts).
        path: schedule.json.

    Raises:
        CheckpointError: schedule.json is damaged.
    """

    def __init__(self, config: TrainingConfig, path: Path) -> None:
        self.config = config
        self.path = path
        self.legs: list[Leg] = []
        if config.minutes is None:
            assert config.max_steps is not None
            start = round(config.max_steps * self._stable_share)
            if config.schedule == "cosine":
                start = min(config.warmup_steps, config.max_steps)
            self.legs = [Leg(start, 0.0, config.max_steps)]
        elif path.exists():
            self.legs = _read(path)

    @property
    def max_steps(self) -> int | None:
        """Steps in all; None while that is still open."""
        return self.legs[-1].end if self.legs else self.config.max_steps

    def done(self, step: int, elapsed_s: float) -> float:
        """Share of the run that is behind after `step` steps, 0 to 1, by the nearer end."""
        shares = [] if self.max_steps is None else [step / max(1, self.max_steps)]
        if self.config.minutes is not None and not self.legs:
            shares.append(elapsed_s / (60 * self.config.minutes))
        return min(1.0, max(shares))

    def multiplier(self, step: int) -> float:
        """Share of the base learning rates at `step` (from 0)."""
        if self.config.schedule == "noam":
            return schedule.noam(step, self.config.warmup_steps)
        shape = schedule.cosine if self.config.schedule == "cosine" else schedule.linear
        warm = schedule.warm_up(step, self.config.warmup_steps)
        return warm * shape(self._progress(step), self.config.min_lr_ratio)

    def update(self, step: int, elapsed_s: float, step_s: float, reserve_s: float = 0.0) -> None:
        """Decide, if it is time to; called before `step` (from 0) is taken.

        Args:
            step: The step about to be taken.
            elapsed_s: Training time so far, in all sessions.
            step_s: Seconds a step takes, its share of evaluations and saves included; NaN as long
                as none has been timed, and then nothing is decided.
            reserve_s: Seconds that the last evaluation and the last save will take.

        Raises:
            CheckpointError: The decision cannot be written.
        """
        config = self.config
        if config.minutes is None or math.isnan(step_s):
            return
        if self.legs and not self.legs[-1].step < step < self.legs[-1].end:
            return
        available = max(0.0, 60 * config.minutes - reserve_s)
        left = max(1, round((available - elapsed_s) / max(step_s, 1e-9)))
        if config.max_steps is not None:
            left = max(1, min(left, config.max_steps - step))
        if not self.legs:
            if self._begins(step, elapsed_s, available):
                self._decide(Leg(step, 0.0, step + left))
            return
        last = self.legs[-1]
        late_s = abs(last.end - step - left) * step_s
        settled = step - last.step < max(1, (last.end - last.step) // 4)
        if not settled and late_s > max(DRIFT_S, DRIFT_SHARE * available):
            self._decide(Leg(step, last.at(step), step + left))

    def remaining_s(
        self, step: int, elapsed_s: float, step_s: float, reserve_s: float = 0.0
    ) -> float:
        """Estimate of the training time left; NaN while there is nothing to go by."""
        estimates = []
        if self.max_steps is not None:
            estimates.append((self.max_steps - step) * step_s + reserve_s)
        if self.config.minutes is not None and not self.legs:
            estimates.append(60 * self.config.minutes - elapsed_s)
        estimates = [x for x in estimates if not math.isnan(x)]
        return max(0.0, min(estimates)) if estimates else math.nan

    @property
    def _stable_share(self) -> float:
        return 0.0 if self.config.schedule == "cosine" else 1.0 - self.config.decay_fraction

    def _begins(self, step: int, elapsed_s: float, available: float) -> bool:
        """Whether the decay begins at `step`."""
        timed = step >= max(CALIBRATION_STEPS, self.config.warmup_steps)
        if not timed and elapsed_s < CALIBRATION_SHARE * available:
            return False
        most = self.config.max_steps
        due = elapsed_s >= self._stable_share * available
        return due or (most is not None and step >= round(most * self._stable_share))

    def _progress(self, step: int) -> float:
        """By the leg that was in force at `step`, so that it never changes afterwards."""
        for leg in reversed(self.legs):
            if step >= leg.step:
                return leg.at(step)
        return 0.0

    def _decide(self, leg: Leg) -> None:
        legs = [*self.legs, leg]
        try:
            write_atomic(self.path, json.dumps({"legs": [asdict(x) for x in legs]}))
        except OSError as error:
            raise CheckpointError(
                f"cannot write {self.path}: {error.strerror}",
                fix="make room; the run continues from its last checkpoint",
            ) from error
        self.legs = legs


def _read(path: Path) -> list[Leg]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))["legs"]
        legs = [Leg(int(x["step"]), float(x["progress"]), int(x["end"])) for x in raw]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged: {error}", fix="start again in a new folder"
        ) from error
    return legs
