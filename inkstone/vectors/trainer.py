"""What training word vectors has in common, whatever the algorithm: chunks, position, state."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.config import Section
from inkstone.errors import CheckpointError, ModelError
from inkstone.vectors import compiled, hogwild
from inkstone.vectors.table import Vectors
from inkstone.vectors.vocabulary import Vocabulary

Arrays = dict[str, npt.NDArray[Any]]


class Trainer(ABC):
    """Training that can pause between any two chunks and go on elsewhere.

    Everything that decides the rest is in `arrays` and `done`; random numbers depend on the seed
    and the chunk's number alone. So with one worker a run that was interrupted ends in the same
    bits as one that was not.

    Args:
        vocabulary: The words.
        arrays: What is trained, by name; updated in place.
        epochs: Passes over the chunks.
        chunks: Of one pass.
        units: What the chunks of one pass hold (words, or pairs), to tell progress.
        workers: Threads; None is one a core. Several are not reproducible to the bit.
        seed: Of all random numbers.
    """

    unit = "words"
    config: Section

    def __init__(
        self,
        vocabulary: Vocabulary,
        arrays: Arrays,
        *,
        epochs: int,
        chunks: int,
        units: int,
        workers: int | None,
        seed: int,
    ) -> None:
        self.vocabulary, self.arrays, self.epochs = vocabulary, arrays, epochs
        self.chunks, self.units, self.seed = chunks, units, seed
        self.workers = workers or os.cpu_count() or 1
        self.fast = compiled.available()
        self.done = 0
        self._loss = self._looked = 0.0

    @abstractmethod
    def _work(self, chunk: int) -> tuple[float, float]:
        """Train on one chunk; returns a sum of losses and how many they were."""

    @abstractmethod
    def vectors(self) -> Vectors:
        """The result so far; a copy."""

    @abstractmethod
    def lr(self, chunk: int) -> float:
        """Learning rate of a chunk."""

    @property
    def total(self) -> int:
        """Chunks of all epochs."""
        return self.epochs * self.chunks

    @property
    def units_done(self) -> int:
        """Words or pairs trained on so far."""
        return self.units * self.done // self.chunks

    def advance(
        self, *, to: int | None = None, pause: Callable[[int], bool] = lambda done: False
    ) -> None:
        """Train until the end, or chunk `to`, or until `pause` says so.

        Args:
            to: A chunk number, for example the end of an epoch.
            pause: Asked ten times a second with the chunks done so far.
        """
        self.compile()
        end = self.total if to is None else min(to, self.total)
        workers = self.workers if self.fast else 1  # NumPy's small steps gain nothing from threads
        self.done = hogwild.run(self._count, self.done, end, workers=workers, pause=pause)

    def loss(self) -> float:
        """Mean loss since the last call, in nats; NaN when nothing was done."""
        mean = self._loss / self._looked if self._looked else float("nan")
        self._loss = self._looked = 0.0
        return mean

    def rate(self, seconds: float = 0.5) -> float:
        """Words or pairs a second on this machine, measured on copies of the arrays."""
        self.compile()
        kept, position = {k: v.copy() for k, v in self.arrays.items()}, self.done
        began = time.perf_counter()
        self.advance(pause=lambda done: time.perf_counter() - began > seconds)
        spent, units = time.perf_counter() - began, self.units * (self.done - position)
        for name, value in kept.items():
            self.arrays[name][...] = value
        self.done = position
        self.loss()
        return units / self.chunks / spent

    @abstractmethod
    def compile(self) -> None:
        """Have the inner loop ready, so that time spent later is training."""

    def state(self) -> dict[str, Any]:
        """Position, JSON-ready; the arrays are saved beside it."""
        return {"done": self.done, "epochs": self.epochs, "chunks": self.chunks, "seed": self.seed}

    def load_state(self, state: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go on where `state` was taken.

        Raises:
            CheckpointError: It belongs to other words, settings or data.
        """
        mine = self.state() | {"done": state.get("done")}
        done = state.get("done")
        if dict(state) != mine or type(done) is not int or not 0 <= done <= self.total:
            raise CheckpointError("the saved position belongs to other data or settings")
        if set(arrays) != set(self.arrays):
            raise CheckpointError(f"the saved state holds {sorted(arrays)}")
        for name, value in arrays.items():
            target = self.arrays[name]
            if value.shape != target.shape or value.dtype != target.dtype:
                raise CheckpointError(f"the saved {name} is of shape {value.shape}")
            target[...] = value
        self.done = done

    def _count(self, chunk: int) -> None:
        loss, looked = self._work(chunk)
        self._loss += loss
        self._looked += looked

    def _random_state(self, chunk: int) -> int:
        """xorshift64's state for one chunk, never 0."""
        return int(np.random.SeedSequence((self.seed, chunk)).generate_state(1, np.uint64)[0]) | 1


def matrix(rows: int, columns: int, *, fill: float = 0.0) -> npt.NDArray[np.float32]:
    """[rows, columns] of fp32.

    Raises:
        ModelError: There is not so much memory.
    """
    try:
        made = np.empty((rows, columns), np.float32)
        made.fill(fill)
        return made
    except MemoryError as error:
        raise ModelError(
            f"{rows:,} vectors of {columns} numbers do not fit in memory",
            fix="raise model.min_count, or lower model.d_model",
        ) from error
