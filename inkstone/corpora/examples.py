"""Encoded examples on disk, and batches of examples of like length.

An example is a row of named columns of integers, each of any length: {"ids": …, "labels": …}. A
column is one flat file and one of offsets, read through the page cache, so that memory does not
grow with the number of examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from inkstone.corpora.shuffle import Permutation
from inkstone.errors import DataError, RunError
from inkstone.files import read_json, write_json

POOL = 64  # batches that are cut from one sorted pool: enough that neighbors are of like length
ROWS = 8  # of a batch, or a multiple
INDEX = "examples.json"
INT, START = np.dtype("<i4"), np.dtype("<i8")
Row = Mapping[str, Sequence[int] | npt.NDArray[np.int32]]
Ints = npt.NDArray[np.int64]


class ExampleTable:
    """Encoded examples in a folder that `write` made.

    Args:
        folder: With examples.json and two files a column.

    Raises:
        DataError: The files do not fit together.
    """

    def __init__(self, folder: Path) -> None:
        index = read_json(folder / INDEX)
        self.folder = folder
        self.fingerprint = str(index["fingerprint"])
        self._flat: dict[str, npt.NDArray[np.int32]] = {}
        self._starts: dict[str, npt.NDArray[np.int64]] = {}
        for name in index["columns"]:
            starts = _open(folder / f"{name}.starts", START)
            flat = _open(folder / f"{name}.flat", INT)
            if len(starts) != index["examples"] + 1 or starts[-1] != len(flat):
                raise DataError(f"{folder}: column {name!r} is cut short", fix="prepare it again")
            self._flat[name], self._starts[name] = flat, starts
        self._n = int(index["examples"])

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, number: int) -> dict[str, npt.NDArray[np.int32]]:
        """The columns of one example."""
        return {
            name: flat[self._starts[name][number] : self._starts[name][number + 1]]
            for name, flat in self._flat.items()
        }

    def lengths(self, column: str) -> Ints:
        """[N]: how long a column is in each example."""
        return np.diff(self._starts[column])

    @staticmethod
    def write(folder: Path, rows: Iterable[Row]) -> ExampleTable:
        """Write examples to an existing folder, in order and in constant memory.

        Args:
            folder: Where to.
            rows: All with the same columns.
        """
        names: list[str] = []
        count = 0
        digest = hashlib.sha256()
        with ExitStack() as stack:
            files: dict[str, tuple[IO[bytes], IO[bytes]]] = {}
            ends: dict[str, int] = {}
            for row in rows:
                if not count:
                    names = list(row)
                    for name in names:
                        flat: IO[bytes] = stack.enter_context(_create(folder, name, "flat"))
                        starts: IO[bytes] = stack.enter_context(_create(folder, name, "starts"))
                        files[name], ends[name] = (flat, starts), 0
                        starts.write(bytes(8))
                for name in names:
                    values = np.asarray(row[name], INT).tobytes()
                    ends[name] += len(values) // INT.itemsize
                    end = ends[name].to_bytes(8, "little")
                    flat, starts = files[name]
                    flat.write(values)
                    starts.write(end)
                    digest.update(values + end)
                count += 1
        index = {"columns": names, "examples": count, "fingerprint": digest.hexdigest()}
        write_json(folder / INDEX, index)
        return ExampleTable(folder)


class ExampleStream:
    """Endless batches; in an epoch every example comes exactly once.

    The order depends on the seed and the epoch alone. An epoch's permutation is cut into pools of
    64 batches; a pool is sorted by length (equal lengths stay in random order) and cut into
    batches, so that little padding is needed; then all batches of the epoch are shuffled.

    Args:
        lengths: [N] or [N, K]: lengths of each example, of K sequences that are padded apart
            (source and target); examples are sorted by the first, then the next.
        collate: Makes a batch of examples, given their numbers.
        batch_examples: Examples a batch; or
        batch_tokens: padded tokens a batch at most (one example may have more).
        seed: Of the order.

    Raises:
        DataError: There is no example.
    """

    def __init__(
        self,
        lengths: npt.ArrayLike,
        collate: Callable[[Sequence[int]], Any],
        *,
        batch_examples: int | None = None,
        batch_tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        lengths = np.asarray(lengths, np.int64)
        self._lengths: Ints = lengths[:, None] if lengths.ndim == 1 else lengths
        if not len(self._lengths):
            raise DataError("there is no example to train on")
        assert (batch_examples is None) != (batch_tokens is None)
        self.collate, self.seed = collate, seed
        self.batch_examples, self.batch_tokens = batch_examples, batch_tokens
        self._epoch, self._batch = 0, 0
        self._plan_of: int | None = None
        self._plan: list[Ints] = []

    def __iter__(self) -> ExampleStream:
        return self

    def __next__(self) -> Any:
        batches = self._batches(self._epoch)
        numbers = batches[self._batch]
        self._batch += 1
        if self._batch == len(batches):
            self._epoch, self._batch = self._epoch + 1, 0
        return self.collate(numbers.tolist())

    @property
    def epoch(self) -> float:
        """Passes over the examples, a started one as the share of its batches."""
        return self._epoch + self._batch / len(self._batches(self._epoch))

    @property
    def batches_per_epoch(self) -> int:
        """Batches of the first epoch; later ones can have a few more or less of `batch_tokens`."""
        return len(self._batches(0))

    def state(self) -> dict[str, Any]:
        """Position: epoch, batch within it, and how many examples there are; JSON-ready."""
        return {"epoch": self._epoch, "batch": self._batch, "examples": len(self._lengths)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            RunError: It belongs to other examples.
        """
        epoch, batch = state.get("epoch"), state.get("batch")
        sound = isinstance(epoch, int) and isinstance(batch, int) and epoch >= 0
        if not sound or state.get("examples") != len(self._lengths):
            raise RunError("the saved position in the data does not fit these examples")
        assert isinstance(epoch, int) and isinstance(batch, int)
        if not 0 <= batch < len(self._batches(epoch)):
            raise RunError("the saved position in the data does not fit these examples")
        self._epoch, self._batch = epoch, batch

    def _batches(self, epoch: int) -> list[Ints]:
        """Numbers of the examples of each batch of an epoch, in the order in which they come."""
        if self._plan_of == epoch:
            return self._plan
        n = len(self._lengths)
        order = Permutation(n, self.seed, epoch)(np.arange(n))
        batches: list[Ints] = []
        for pool in np.split(order, np.arange(self._pool_size, n, self._pool_size)):
            keys = self._lengths[pool].T[::-1]  # lexsort's last key counts most; it is stable
            batches += self._cut(pool[np.lexsort(keys)])
        places = Permutation(len(batches), self.seed, epoch, 1)(np.arange(len(batches)))
        self._plan, self._plan_of = [batches[i] for i in places], epoch
        return self._plan

    @property
    def _pool_size(self) -> int:
        if self.batch_examples is not None:
            return POOL * self.batch_examples
        assert self.batch_tokens is not None
        return max(1, round(POOL * self.batch_tokens / float(self._lengths.sum(1).mean())))

    def _cut(self, numbers: Ints) -> list[Ints]:
        if self.batch_examples is not None:
            size = self.batch_examples
            return np.split(numbers, np.arange(size, len(numbers), size))
        assert self.batch_tokens is not None
        return cut_by_tokens(numbers, self._lengths, self.batch_tokens)


def cut_by_tokens(numbers: Ints, lengths: Ints, most: int) -> list[Ints]:
    """Neighbors together, as many as keep rows × longest (summed over columns) within `most`.

    Above 8 rows their number is a multiple of 8, but for the last batch: a CPU compiles a kernel
    for every number of tokens that it meets.

    Args:
        numbers: Of the examples, in order.
        lengths: [N, K] of all examples.
        most: Padded tokens a batch.
    """
    parts: list[Ints] = []
    start = 0
    while start < len(numbers):
        longest = np.maximum.accumulate(lengths[numbers[start : start + most]])
        places = longest.sum(1) * np.arange(1, len(longest) + 1)
        rows = max(1, int(np.searchsorted(places, most, "right")))
        if rows > ROWS and start + rows < len(numbers):
            rows -= rows % ROWS
        parts.append(numbers[start : start + rows])
        start += rows
    return parts


def in_batches(lengths: Ints, most: int) -> Iterator[Ints]:
    """Numbers of all examples in batches of like length, longest first: for prediction.

    Args:
        lengths: [N, K].
        most: Padded tokens a batch.
    """
    yield from cut_by_tokens(np.lexsort(lengths.T[::-1])[::-1], lengths, most)


def _create(folder: Path, name: str, part: str) -> IO[bytes]:
    return open(folder / f"{name}.{part}", "wb")


def _open(path: Path, kind: np.dtype[Any]) -> npt.NDArray[Any]:
    if path.stat().st_size % kind.itemsize:
        raise DataError(f"{path} is cut short", fix="prepare it again")
    if not path.stat().st_size:
        return np.empty(0, kind)
    return np.memmap(path, kind, "r")
