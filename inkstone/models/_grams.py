"""Counting n-grams of symbols (words or characters) by document, in sorted numpy arrays.

An n-gram is the rank of its first n−1 symbols and its last symbol, packed in one integer:
rank · V + symbol. Shapes: N symbols of the corpus, D documents, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
EMPTY = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Counts:
    """A sparse matrix of documents × features, its entries sorted by row, then column.

    Attributes:
        rows: [entries] document of each.
        columns: [entries] feature of each.
        values: [entries].
        shape: D and F.
    """

    rows: Ints
    columns: Ints
    values: Floats
    shape: tuple[int, int]

    @staticmethod
    def of(rows: Ints, columns: Ints, shape: tuple[int, int]) -> Counts:
        """Count equal (row, column) pairs."""
        pair, values = np.unique(rows * max(1, shape[1]) + columns, return_counts=True)
        return Counts(*np.divmod(pair, max(1, shape[1])), values.astype(np.float64), shape)

    def with_values(self, values: Floats) -> Counts:
        """The same entries with other values."""
        return Counts(self.rows, self.columns, values, self.shape)

    def take(self, rows: Ints) -> Counts:
        """These rows alone, in this order."""
        starts = np.searchsorted(self.rows, np.stack((rows, rows + 1)))
        lengths = starts[1] - starts[0]
        ends = np.cumsum(lengths)
        places = np.arange(lengths.sum()) + np.repeat(starts[0] - (ends - lengths), lengths)
        new = np.repeat(np.arange(len(rows)), lengths)
        return Counts(new, self.columns[places], self.values[places], (len(rows), self.shape[1]))

    def times(self, weights: npt.NDArray[np.floating]) -> Floats:
        """The product with a vector: [F] → [D]."""
        return _sums(self.rows, self.values * weights[self.columns], self.shape[0])

    def column_sums(self, documents: npt.NDArray[np.bool_] | None = None) -> Floats:
        """[F], over the chosen [D] documents."""
        values = self.values if documents is None else self.values * documents[self.rows]
        return _sums(self.columns, values, self.shape[1])


@dataclass(frozen=True)
class Grams:
    """The n-grams that are features: all V symbols, then for each order its keys.

    Attributes:
        size: V.
        keys: For the orders 2, 3, …: [features of that order] sorted keys.
    """

    size: int
    keys: tuple[Ints, ...]

    @property
    def n_features(self) -> int:
        return self.size + sum(map(len, self.keys))

    @staticmethod
    def fit(ids: Ints, documents: Ints, size: int, order: int, min_df: int) -> Grams:
        """Choose the n-grams that occur in at least `min_df` documents.

        None can be lost by way of its beginning: that occurs in as many documents or more.

        Args:
            ids: [N] symbols, −1 where one is no feature.
            documents: [N] the document of each, ascending.
            size: V.
            order: Longest n-gram.
            min_df: Documents.
        """
        chosen: list[Ints] = []
        for n in range(2, order + 1):
            *_, (_, ranks) = Grams(size, tuple(chosen))._ranks(ids, documents)
            wanted, places = _longer(ranks, ids, documents, size, n)
            keys, frequency = document_frequency(wanted, documents[places])
            chosen.append(keys[frequency >= min_df])
        return Grams(size, tuple(chosen))

    def occurrences(self, ids: Ints, documents: Ints) -> tuple[Ints, Ints]:
        """Document and feature of every n-gram that is a feature, in no particular order."""
        rows, columns = [EMPTY], [EMPTY]
        for offset, ranks in self._ranks(ids, documents):
            known = np.flatnonzero(ranks >= 0)
            rows.append(documents[known])
            columns.append(ranks[known] + offset)
        return np.concatenate(rows), np.concatenate(columns)

    def symbols(self, feature: int) -> list[int]:
        """The n-gram that a feature stands for."""
        rank, level = feature - self.size, 0
        while rank >= 0 and rank >= len(self.keys[level]):
            rank, level = rank - len(self.keys[level]), level + 1
        if rank < 0:
            return [feature]
        found: list[int] = []
        for keys in reversed(self.keys[: level + 1]):
            rank, symbol = divmod(int(keys[rank]), self.size)
            found.append(symbol)
        return [rank, *reversed(found)]

    def sound(self) -> bool:
        """Whether every key is in range and in order; what is read from a file may not be."""
        shorter = self.size
        for keys in self.keys:
            if keys.ndim != 1 or not (keys[1:] > keys[:-1]).all():
                return False
            if len(keys) and not 0 <= keys[0] <= keys[-1] < shorter * self.size:
                return False
            shorter = len(keys)
        return True

    def _ranks(self, ids: Ints, documents: Ints) -> Iterator[tuple[int, Ints]]:
        """By order: the first feature, and [N] the rank of the n-gram that begins there, or −1."""
        offset, ranks = 0, ids
        yield offset, ranks
        offset += self.size
        for n, keys in enumerate(self.keys, start=2):
            wanted, places = _longer(ranks, ids, documents, self.size, n)
            ranks = np.full(len(ids), -1, np.int64)
            if len(keys):
                found = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
                known = keys[found] == wanted
                ranks[places[known]] = found[known]
            yield offset, ranks
            offset += len(keys)


def _longer(ranks: Ints, ids: Ints, documents: Ints, size: int, n: int) -> tuple[Ints, Ints]:
    """Keys of the n-grams within documents, given the ranks of those one shorter; and places."""
    end = max(0, len(ids) - n + 1)
    last = ids[len(ids) - end :]
    inside = documents[:end] == documents[len(ids) - end :]
    places = np.flatnonzero(inside & (ranks[:end] >= 0) & (last >= 0))
    return ranks[places] * size + last[places], places


def document_frequency(keys: Ints, documents: Ints) -> tuple[Ints, Ints]:
    """The distinct keys, sorted, and in how many documents each occurs.

    Args:
        keys: [N].
        documents: [N], ascending.
    """
    if not len(keys):
        return EMPTY, EMPTY
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    new_key = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=new_key[1:])
    new_pair = new_key.copy()
    new_pair[1:] |= documents[1:] != documents[:-1]
    firsts = np.flatnonzero(new_key)
    return keys[firsts], np.add.reduceat(new_pair, firsts, dtype=np.int64)


def stack(parts: Sequence[Counts]) -> Counts:
    """Matrices of the same documents, their features side by side."""
    offset, columns = 0, []
    for part in parts:
        columns.append(part.columns + offset)
        offset += part.shape[1]
    rows = np.concatenate([part.rows for part in parts])
    values = np.concatenate([part.values for part in parts])
    order = np.argsort(rows, kind="stable")
    return Counts(
        rows[order], np.concatenate(columns)[order], values[order], (parts[0].shape[0], offset)
    )


def _sums(places: Ints, values: Floats, size: int) -> Floats:
    return np.bincount(places, values, size).astype(np.float64, copy=False)
