"""The words of a corpus by frequency, and the tables that sampling draws from."""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from inkstone.errors import ModelError

UNKNOWN, BREAK = -1, -2  # in a stream of rows: a word outside the vocabulary, the end of a text


class Words(Protocol):
    """A corpus as vocabulary rows: UNKNOWN where a word is not in it, BREAK between texts."""

    @property
    def n_tokens(self) -> int: ...

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """[stop − start]; called by several threads."""
        ...


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Words, the most frequent first.

    Attributes:
        words: V of them, all different.
        counts: [V] int64, how often each stands in the corpus.
    """

    words: tuple[str, ...]
    counts: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        if not self.words:
            raise ModelError(
                "no word is frequent enough for the vocabulary",
                fix="lower model.min_count, or give more text",
            )
        assert len(self.words) == len(self.counts) and (np.diff(self.counts) <= 0).all()

    def __len__(self) -> int:
        return len(self.words)

    @functools.cached_property
    def row(self) -> dict[str, int]:
        """Where each word stands."""
        return {word: number for number, word in enumerate(self.words)}

    def keep(self, sample: float) -> npt.NDArray[np.float32]:
        """[V] probability that an occurrence is kept when frequent words are thinned out.

        (sqrt(f/t) + 1) · t/f, as word2vec's released code has it; the paper's equation 5 (Mikolov
        et al. 2013b) keeps sqrt(t/f). f is the share of the word among all words in the vocabulary.

        Args:
            sample: t; 0 keeps every word.
        """
        if sample == 0:
            return np.ones(len(self), np.float32)
        relative = self.counts / (sample * self.counts.sum())
        return np.minimum(1.0, (np.sqrt(relative) + 1) / relative).astype(np.float32)

    def noise(self, power: float = 0.75) -> npt.NDArray[np.uint64]:
        """[V] alias table of the noise distribution U(w)^power (Mikolov et al. 2013b, section 2.2).

        Of entry x, the upper 32 bits hold how likely x itself is, the lower 32 the row that is
        taken otherwise (Walker 1977), so a draw costs one memory access.
        """
        share = self.counts.astype(np.float64) ** power
        share *= len(self) / share.sum()
        alias, own = np.arange(len(self), dtype=np.uint64), np.ones(len(self))
        small = np.flatnonzero(share < 1).tolist()
        large = np.flatnonzero(share >= 1).tolist()
        while small and large:
            poor, rich = small.pop(), large[-1]
            own[poor], alias[poor] = share[poor], rich
            share[rich] -= 1 - share[poor]
            if share[rich] < 1:
                small.append(large.pop())
        threshold = np.minimum(own * 2.0**32, 2.0**32 - 1).astype(np.uint64)
        return (threshold << np.uint64(32)) | alias

    def huffman(self) -> HuffmanTree:
        """The binary tree of hierarchical softmax: frequent words have short paths."""
        return _huffman(self.counts)


@dataclass(frozen=True, eq=False)
class HuffmanTree:
    """Paths from the root to every word.

    Attributes:
        starts: [V + 1] where each word's path begins in `nodes` and `bits`.
        nodes: Inner nodes on the way, 0 … V − 2.
        bits: Which way the path goes on from each of them: 0 or 1.
    """

    starts: npt.NDArray[np.int64]
    nodes: npt.NDArray[np.int32]
    bits: npt.NDArray[np.uint8]


def _huffman(counts: npt.NDArray[np.int64]) -> HuffmanTree:
    size = len(counts)
    heap = [(int(count), node) for node, count in enumerate(counts)]
    heapq.heapify(heap)
    parent = np.zeros(max(1, 2 * size - 1), np.int64)
    side = np.zeros(max(1, 2 * size - 1), np.uint8)
    for node in range(size, 2 * size - 1):
        left, right = heapq.heappop(heap), heapq.heappop(heap)
        parent[left[1]] = parent[right[1]] = node
        side[right[1]] = 1
        heapq.heappush(heap, (left[0] + right[0], node))
    root = 2 * size - 2
    starts, nodes, bits = [0], list[int](), list[int]()
    for word in range(size):
        path = []
        node = word
        while node != root:
            path.append((int(parent[node]) - size, int(side[node])))
            node = int(parent[node])
        for inner, bit in reversed(path):
            nodes.append(inner)
            bits.append(bit)
        starts.append(len(nodes))
    return HuffmanTree(np.array(starts), np.array(nodes, np.int32), np.array(bits, np.uint8))


def choose(
    words: Sequence[str],
    counts: npt.NDArray[np.int64],
    *,
    min_count: int = 1,
    max_words: int | None = None,
    excluded: Iterable[int] = (),
) -> tuple[Vocabulary, npt.NDArray[np.int32]]:
    """The vocabulary of a tokenizer's tokens, and the row of every token.

    Args:
        words: [N] the tokens' names, by id.
        counts: [N] how often each stands in the corpus.
        min_count: Rarer words are left out.
        max_words: Keep only so many, the most frequent.
        excluded: Ids that are no words (control tokens).

    Returns:
        The vocabulary, and [N] the row of every id, UNKNOWN where it is left out.

    Raises:
        ModelError: Nothing is left.
    """
    counts = np.asarray(counts, np.int64).copy()
    counts[list(excluded)] = 0
    order = np.argsort(-counts, kind="stable")[:max_words]
    order = order[counts[order] >= max(1, min_count)]
    row = np.full(len(words), UNKNOWN, np.int32)
    row[order] = np.arange(len(order), dtype=np.int32)
    return Vocabulary(tuple(words[int(i)] for i in order), counts[order]), row


class Rows:
    """Words that lie in memory."""

    def __init__(self, rows: npt.NDArray[np.int32]) -> None:
        self._rows = rows

    @property
    def n_tokens(self) -> int:
        return len(self._rows)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        return self._rows[start:stop]


def from_texts(texts: Iterable[Sequence[str]], *, min_count: int = 1) -> tuple[Vocabulary, Rows]:
    """Vocabulary and stream of texts that are lists of words already; for small corpora.

    Raises:
        ModelError: No word is frequent enough.
    """
    held = [list(text) for text in texts]
    counted: Counter[str] = Counter(word for text in held for word in text)
    names = list(counted)
    vocabulary, _ = choose(names, np.array([*counted.values()], np.int64), min_count=min_count)
    stream: list[Any] = []
    for text in held:
        stream += [vocabulary.row.get(word, UNKNOWN) for word in text]
        stream.append(BREAK)
    return vocabulary, Rows(np.array(stream, np.int32))
