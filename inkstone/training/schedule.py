"""Learning-rate schedules: pure functions that give a multiplier of the base rate.

A schedule is a warm-up times a shape over progress, from 0 (the rate is at its top) to 1 (the end).
Warm-up, stable, decay (Hu et al. 2024, MiniCPM, eq. 1) holds the rate until the decay begins, so a
run that is given minutes may settle its length late; its decay is `linear` here. `cosine` is
Loshchilov & Hutter 2017, eq. 5. `noam` needs no end.
"""

from __future__ import annotations

import math


def warm_up(step: int, steps: int) -> float:
    """Linear from 1 / steps at step 0 to 1 at step `steps` - 1, and 1 from there on."""
    return min(1.0, (step + 1) / max(1, steps))


def linear(progress: float, floor: float) -> float:
    """From 1 straight down to `floor`."""
    return floor + (1.0 - floor) * (1.0 - progress)


def cosine(progress: float, floor: float) -> float:
    """From 1 down to `floor` along half a cosine."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def noam(step: int, steps: int) -> float:
    """Warm-up, then 1/√step: Vaswani et al. 2017, equation 3, as a share of its top.

    The paper's rate d_model^-0.5 · min(n^-0.5, n · steps^-1.5) at step n = `step` + 1 is the top
    (d_model · steps)^-0.5 times this.
    """
    steps = max(1, steps)
    return min((steps / (step + 1)) ** 0.5, (step + 1) / steps)


def progress(step: int, *, start: int, end: int, at_start: float = 0.0) -> float:
    """Share of the decay that is done at `step`: even from `at_start` at `start` to 1 at `end`."""
    if step <= start:
        return at_start
    return at_start + (1.0 - at_start) * min(1.0, (step - start) / max(1, end - start))
