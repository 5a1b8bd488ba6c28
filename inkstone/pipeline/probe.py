"""A quick look at what the data gives: a model that is fitted at once, on growing parts of it.

The parts double until the time is up; each is scored on the same held-out examples, never on the
test part. What is beyond them is extrapolated (`planning.curve`).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from inkstone import registry
from inkstone.errors import DataError
from inkstone.evaluation.scores import METRICS
from inkstone.pipeline.examples_data import Examples
from inkstone.pipeline.memory import PeakMemory
from inkstone.planning.curve import FARTHEST, Expected, extrapolate

SMALLEST, DOUBLINGS = 250, 2
HELD_OUT = 2000  # examples that are scored
MOST = 200_000  # examples that are ever held in memory here
RESAMPLES = 400
OVERTIME = 3.0  # times as long where nothing could be said otherwise


@dataclass(frozen=True)
class Probe:
    """What fitting a family to parts of the examples showed.

    Attributes:
        expected: The score on all of them; None where nothing can be said.
        training_s: Time to fit all of them, in proportion to the largest part.
        memory_bytes: Peak of the process at the largest part; None where it is not known.
        fitted: Examples of that part.
    """

    expected: Expected | None
    training_s: float
    memory_bytes: int | None
    fitted: int


def probe(examples: Examples, family: str, settings: dict[str, Any], seconds: float) -> Probe:
    """Fit a family of `KIND` "linear" or "markov" to growing parts of the examples.

    Args:
        examples: Of a run.
        family: Of the model.
        settings: Of its `Config`.
        seconds: Spent on it, about, and more where that would be too little to say anything; the
            smallest part is always fitted.

    Raises:
        InkstoneError: The family does not do this task, or its extra is not installed.
    """
    train = _sample(examples, "train", MOST)
    held = _sample(examples, "valid", HELD_OUT)
    task, name = examples.task, examples.task.metrics[0]
    given = [task.given(example) for example in held]
    total = examples.counts["train"]
    draws = _draws(len(held))
    sizes: list[int] = []
    scores: list[np.ndarray[Any, Any]] = []
    module = registry.load("models", family)

    def fit(size: int) -> tuple[Any, Any]:
        part, model = task.learn(train[:size]), module.Model(module.Config(**settings))
        part.fit(model, train[:size])
        return part, model

    with contextlib.suppress(DataError):  # too small a part says so again below
        fit(_sizes(len(train))[0])  # what is imported and compiled once does not count
    began, memory = time.monotonic(), PeakMemory()
    fit_s = spent = 0.0
    for size in _sizes(len(train)):
        growth = size / sizes[-1] if sizes else 1.0
        room = seconds * (OVERTIME if FARTHEST * size < 2 * total else 1.0)
        if sizes and time.monotonic() - began + growth * spent > room:
            break
        started = time.monotonic()
        try:
            part, model = fit(size)
        except DataError:  # one label only: the part is too small
            continue
        fit_s = time.monotonic() - started
        if held:
            found = [task.found(prediction) for prediction in part.apply(model, held)]
            value = METRICS[name][1](task, found, given)
            if value is not None:
                scores.append(np.array([value(w) for w in draws]))
        sizes.append(size)
        spent = time.monotonic() - started
    if not sizes:
        raise DataError(f"there are too few examples to fit {family}")
    expected = None
    if len(scores) == len(sizes):
        expected = extrapolate(name, sizes, np.stack(scores), total, len(held))
    return Probe(expected, fit_s * total / sizes[-1], memory.peak(), sizes[-1])


def _sizes(count: int) -> list[int]:
    """All, a half, a quarter, … down to a few hundred; ascending."""
    sizes = [count]
    while sizes[-1] // DOUBLINGS >= SMALLEST:
        sizes.append(sizes[-1] // DOUBLINGS)
    return sizes[::-1]


def _sample(examples: Examples, part: str, most: int) -> list[Any]:
    """At most so many examples of a part, evenly taken, in a random order."""
    step = max(1, -(-examples.counts[part] // most))
    found = list(islice(examples.part(part), 0, None, step))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


def _draws(count: int) -> list[np.ndarray[Any, Any]]:
    """All held-out examples once, then draws of them with replacement."""
    chance = np.random.default_rng(0)
    drawn = chance.multinomial(count, np.full(count, 1 / max(1, count)), RESAMPLES)
    return [np.ones(count), *drawn.astype(np.float64)]
