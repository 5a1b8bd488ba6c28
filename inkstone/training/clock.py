"""Training time: over all sessions, without the pauses of a stopped process, and the pace."""

from __future__ import annotations

import math
import time


class Clock:
    """Measures one session of a run.

    Time in which the process was stopped (Ctrl-Z, SIGSTOP) does not count: `stopped` says that the
    current lap holds such a gap, and the lap is then taken to have lasted as long as a usual one.

    Args:
        elapsed_s: Training time of the earlier sessions.
        step: Where this session begins.
    """

    def __init__(self, elapsed_s: float = 0.0, step: int = 0) -> None:
        self._origin = time.perf_counter() - elapsed_s
        self._lap_began = elapsed_s
        self._mark = (step, elapsed_s)
        self._warm = False
        self._gap = False
        self.step_s = math.nan
        self.evaluation_s = 0.0
        self.save_s = 0.0

    @property
    def elapsed_s(self) -> float:
        """Training time so far, in all sessions."""
        return time.perf_counter() - self._origin

    @property
    def reserve_s(self) -> float:
        """What the evaluation and the save at the end will take, by the last ones."""
        return self.evaluation_s + self.save_s

    def stopped(self) -> None:
        """The process was stopped in this lap and goes on now."""
        self._gap = True

    def lap(self, step: int) -> float:
        """Called before `step` is taken; updates `step_s` and gives the elapsed time.

        `step_s` is the mean over this session, NaN before its first step is done. That one pays
        for start-up (allocation, compilation) and counts only while there is no other.
        """
        now = self.elapsed_s
        if self._gap:
            excess = max(0.0, now - self._lap_began - self.step_s)
            self._origin += excess
            now -= excess
            self._gap = False
        done = step - self._mark[0]
        if done:
            self.step_s = (now - self._mark[1]) / done
            if not self._warm:
                self._warm, self._mark = True, (step, now)
        self._lap_began = now
        return now
