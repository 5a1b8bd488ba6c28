"""Rows of tokens for objectives that make their own targets: windows, or pieces of documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inkstone.corpora.shards import Corpus
from inkstone.corpora.shuffle import Permutation
from inkstone.errors import DataError, RunError

Ids = npt.NDArray[np.int64]
Collate = Callable[[Sequence[int], Sequence[Ids]], Any]
"""(numbers of the rows in the endless sequence, the rows) → a batch."""
AHEAD = 256  # places of a permutation that are looked up together


class Rows(Protocol):
    """A corpus as rows."""

    def __len__(self) -> int:
        """Rows of one pass."""
        ...

    def row(self, place: int, shift: float = 0.0) -> Ids:
        """One row; `shift` in [0, 1) moves the cuts between windows."""
        ...


class Windows:
    """Rows of `length` tokens end to end, wherever documents end.

    "Full sentences" in table 2 of Liu et al. 2019.

    Raises:
        DataError: The corpus is empty.
    """

    def __init__(self, corpus: Corpus, length: int) -> None:
        if not corpus.n_tokens:
            raise DataError(f"{corpus.folder} holds no tokens")
        self.corpus, self.length = corpus, length

    def __len__(self) -> int:
        """A window is given up for the shift, where there are several."""
        return max(1, self.corpus.n_tokens // self.length - 1)

    def row(self, place: int, shift: float = 0.0) -> Ids:
        """[T]; shorter only where the corpus is."""
        room = max(0, self.corpus.n_tokens - len(self) * self.length)
        start = place * self.length + int(shift * (min(room, self.length) + 1))
        stop = min(start + self.length, self.corpus.n_tokens)
        return self.corpus.tokens(min(start, stop), stop).astype(np.int64)

    def in_order(self) -> Iterator[Ids]:
        """Windows that hold every token once."""
        for start in range(0, self.corpus.n_tokens, self.length):
            stop = min(start + self.length, self.corpus.n_tokens)
            yield self.corpus.tokens(start, stop).astype(np.int64)


class Pieces:
    """Documents without their end-of-text, cut into nearly equal rows of at most `length` tokens.

    Args:
        corpus: The documents.
        length: Of a row, at most.
        least: Documents of fewer tokens are left out.

    Raises:
        DataError: No document is long enough.
    """

    def __init__(self, corpus: Corpus, length: int, least: int = 2) -> None:
        self.corpus, self.length = corpus, length
        self._starts = corpus.document_starts.astype(np.int64)
        ends = np.append(self._starts[1:], corpus.n_tokens)
        self._lengths = ends - self._starts - 1
        self._counts = np.where(self._lengths >= least, -(-self._lengths // length), 0)
        self._last = np.cumsum(self._counts)
        if not len(self):
            raise DataError(
                f"no document of {corpus.folder} has {least} tokens",
                fix="give longer documents",
            )

    def __len__(self) -> int:
        return int(self._last[-1]) if len(self._last) else 0

    def document(self, place: int) -> int:
        """Number of the document that a row is from."""
        return int(np.searchsorted(self._last, place, side="right"))

    def row(self, place: int, shift: float = 0.0) -> Ids:
        """[T]; the cuts do not move."""
        document = self.document(place)
        count, length = int(self._counts[document]), int(self._lengths[document])
        number = place - (int(self._last[document]) - count)
        start = int(self._starts[document])
        first, last = length * number // count, length * (number + 1) // count
        return self.corpus.tokens(start + first, start + last).astype(np.int64)

    def in_order(self) -> Iterator[Ids]:
        """Every row once."""
        return (self.row(place) for place in range(len(self)))

    @property
    def n_documents(self) -> int:
        """Documents that are long enough."""
        return int((self._counts > 0).sum())

    def other(self, place: int, random: np.random.Generator) -> Ids:
        """A row of another document than row `place` is from; there are two at least."""
        own = self.document(place)
        last = int(self._last[own])
        count = int(self._counts[own])
        drawn = int(random.integers(len(self) - count))
        return self.row(drawn if drawn < last - count else drawn + count)


class RowStream:
    """Endless batches; in a pass over the corpus every row comes once.

    The order, and with it the number of every row, depends on the seed and the pass alone: a
    collation that draws at random from (seed, number) makes the same batches after a resume.

    Args:
        rows: Of the corpus.
        collate: Makes a batch.
        tokens: Of one batch: rows are taken until they hold so many.
        frame: Control tokens that a row will get, counted too.
        seed: Of the order.
    """

    def __init__(
        self, rows: Rows, collate: Collate, *, tokens: int, frame: int = 0, seed: int = 0
    ) -> None:
        self.rows, self.collate, self.seed = rows, collate, seed
        self.tokens, self.frame = tokens, frame
        self._drawn = 0
        self._known: dict[tuple[int, int], Ids] = {}
        self._shifts: dict[int, float] = {}

    def __iter__(self) -> RowStream:
        return self

    def __next__(self) -> Any:
        numbers: list[int] = []
        rows: list[Ids] = []
        size = 0
        while size < self.tokens:
            row = self._row(self._drawn + len(rows))
            numbers.append(self._drawn + len(rows))
            rows.append(row)
            size += len(row) + self.frame
        self._drawn += len(rows)
        return self.collate(numbers, rows)

    @property
    def epoch(self) -> float:
        """Passes over the corpus so far."""
        return self._drawn / len(self.rows)

    def state(self) -> dict[str, Any]:
        """Position: rows drawn; JSON-ready."""
        return {"rows": self._drawn}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            RunError: It is the position in something else.
        """
        rows = state.get("rows")
        if not isinstance(rows, int) or rows < 0:
            raise RunError("the saved position in the data does not fit these rows")
        self._drawn = rows

    def place(self, number: int) -> int:
        """Which row of the corpus row `number` of the endless sequence is."""
        epoch, place = divmod(number, len(self.rows))
        return int(self._places(epoch, place // AHEAD)[place % AHEAD])

    def _row(self, number: int) -> Ids:
        epoch = number // len(self.rows)
        if epoch not in self._shifts:
            drawn = int(Permutation(1 << 20, self.seed, epoch, 1)(0)[0])
            self._shifts = {epoch: drawn / (1 << 20)}
        return self.rows.row(self.place(number), self._shifts[epoch])

    def _places(self, epoch: int, block: int) -> Ids:
        if (epoch, block) not in self._known:
            first, last = block * AHEAD, min((block + 1) * AHEAD, len(self.rows))
            order = Permutation(len(self.rows), self.seed, epoch)
            self._known = {(epoch, block): order(np.arange(first, last))}
        return self._known[epoch, block]
