"""Learning-rate schedules: pure functions from a step to a multiplier of the base rate.

`wsd` is warm-up, stable, linear decay (Hu et al. 2024, MiniCPM, eq. 1): until the decay begins it
does not depend on the length of the run, so a run that is given minutes may settle its length late.
`cosine` is Loshchilov & Hutter 2017, eq. 5, after a linear warm-up.
"""

from __future__ import annotations

import math


def wsd(
    step: int, *, warmup: int, decay_start: int | None, max_steps: int | None, min_ratio: float
) -> float:
    """Multiplier at `step` (from 0); without a decision on the decay the rate stays at its top."""
    if step < warmup:
        return (step + 1) / warmup
    if decay_start is None or max_steps is None or step < decay_start:
        return 1.0
    left = (max_steps - step) / max(1, max_steps - decay_start)
    return min_ratio + (1 - min_ratio) * max(0.0, min(1.0, left))


def cosine(step: int, *, warmup: int, max_steps: int, min_ratio: float) -> float:
    """Multiplier at `step` (from 0)."""
    if step < warmup:
        return (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, max_steps - warmup))
    return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * done))
