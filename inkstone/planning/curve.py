"""Learning curves: what more examples of the same kind would buy, with an interval.

The error of a model that is fitted to n examples falls nearly as a power law, e(n) = a · n^−b
(Hestness et al. 2017, "Deep Learning Scaling is Predictable, Empirically", section 3). a and b are
fitted to errors that were measured here, by least squares of the logarithms. The interval is a
bootstrap of the held-out examples: they are drawn again, the same ones for every size, and the
curve is fitted again each time. It holds the chance of the draw, not that the law may bend.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FITTED_SIZES = 4  # of the curve: the largest; it is straight near its end only
LEAST_SIZES = 3  # to go beyond what was measured
FARTHEST = 16.0  # times the largest size that was fitted; beyond, nothing is said
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """A score to expect, and what it rests on.

    Attributes:
        name: Of the metric.
        value: From 0 to 1.
        low: Lower end of the 95 % interval.
        high: Upper end.
        basis: How it is known, in words.
        sizes: Examples that were fitted.
        values: The scores of each size.
    """

    name: str
    value: float
    low: float
    high: float
    basis: str
    sizes: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def extrapolate(
    name: str, sizes: Sequence[int], scores: Floats, target: int, held_out: int
) -> Expected | None:
    """The score at `target` examples, from those at a few smaller sizes.

    Args:
        name: Of the metric, from 0 to 1.
        sizes: Examples that were fitted, ascending.
        scores: [sizes, 1 + resamples]: of all held-out examples, then of each draw of them.
        target: Examples there are.
        held_out: Examples that were scored: no error is taken to be less than half of one of them.

    Returns:
        None where too few sizes, or too small ones, were fitted to say anything.
    """
    measured = tuple(float(x) for x in scores[:, 0])
    largest = sizes[-1]
    if largest >= target:
        low, high = np.percentile(scores[-1, 1:], [2.5, 97.5])
        basis = f"measured: fitted to all {largest:,} examples, scored on {held_out:,} held out"
        return Expected(name, measured[-1], float(low), float(high), basis, (*sizes,), measured)
    if len(sizes) < LEAST_SIZES or target > FARTHEST * largest:
        return None
    x = np.log(np.array(sizes[-FITTED_SIZES:], np.float64))
    y = np.log(np.maximum(1.0 - scores[-FITTED_SIZES:], 0.5 / held_out))
    centered = x - x.mean()
    slope = np.minimum(0.0, centered @ (y - y.mean(0)) / (centered @ centered))  # never upwards
    errors = np.exp(y.mean(0) + slope * (np.log(target) - x.mean()))
    found = 1.0 - np.minimum(errors, 1.0)
    low, high = np.percentile(found[1:], [2.5, 97.5])
    shown = ", ".join(f"{n:,}" for n in sizes[-FITTED_SIZES:])
    basis = (
        f"extrapolated to {target:,} examples by a power law of the error, fitted at {shown}; "
        f"scored on {held_out:,} held out"
    )
    return Expected(name, float(found[0]), float(low), float(high), basis, (*sizes,), measured)
