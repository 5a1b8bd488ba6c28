"""How often words stand near one another: GloVe's matrix X, counted in bounded memory.

Pennington et al. 2014, section 4.2: a pair at distance d counts 1/d. Words outside the vocabulary
are passed over, and no window crosses the end of a text. Sorted runs of (pair, sum) are kept in
memory up to a limit, then written out; in the end the runs are merged range by range, and the
pairs are dealt in random order to the file that training reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.config import Progress
from inkstone.errors import DataError
from inkstone.vectors.vocabulary import BREAK, UNKNOWN, Words

PAIR = np.dtype([("i", "<i4"), ("j", "<i4"), ("x", "<f4")])
BLOCK = 1 << 17  # tokens whose pairs are counted at a time
MEMORY_PAIRS = 1 << 24  # distinct pairs held in memory, about 400 MB while they are sorted
NAME = "pairs.bin"

Run = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


class Pairs:
    """Pairs (i, j, X_ij) on disk, both (i, j) and (j, i), in random order.

    Raises:
        DataError: The file is not whole.
    """

    def __init__(self, folder: Path) -> None:
        path = Path(folder) / NAME
        size = path.stat().st_size if path.is_file() else 0
        if not size or size % PAIR.itemsize:
            raise DataError(
                f"{path} holds no pairs of words",
                fix="delete the folder; it is made again. A text of one word has no pairs",
            )
        self.records = np.memmap(path, PAIR, "r")

    def __len__(self) -> int:
        return len(self.records)


def count(
    words: Words,
    size: int,
    window: int,
    out: Path,
    *,
    seed: int = 0,
    memory_pairs: int = MEMORY_PAIRS,
    progress: Progress | None = None,
) -> Pairs:
    """Count the pairs of a corpus and write them, shuffled, to the folder `out`.

    Args:
        words: The corpus.
        size: V, words of the vocabulary.
        window: Tokens on either side.
        out: An existing, private folder.
        seed: Of the order.
        memory_pairs: Distinct pairs held in memory at most, more or less.
        progress: Told the tokens read.

    Raises:
        DataError: There is no pair.
    """
    held: list[Run] = []
    spilled: list[Run] = []
    tail = np.empty(0, np.int32)
    for start in range(0, words.n_tokens, BLOCK):
        block = words.rows(start, min(start + BLOCK, words.n_tokens))
        block = np.concatenate([tail, block[block != UNKNOWN]])
        held.append(_summed(*_pairs(block, len(tail), size, window)))
        tail = block[-window:]
        if sum(len(keys) for keys, _ in held) > memory_pairs:
            held = [_merged(held)]
            if len(held[0][0]) > memory_pairs // 2:
                spilled.append(_spill(held.pop(), out / f"run-{len(spilled)}"))
        if progress is not None:
            progress(min(start + BLOCK, words.n_tokens), words.n_tokens, "words")
    _deal(_ranges([*spilled, *held], memory_pairs), size, out, seed, memory_pairs)
    for path in out.glob("run-*"):
        path.unlink()
    return Pairs(out)


def _pairs(
    block: npt.NDArray[np.int32], old: int, size: int, window: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Keys (smaller row · V + larger) and weights of all pairs whose second word is new."""
    text = np.cumsum(block == BREAK)
    keys, weights = [], []
    for distance in range(1, window + 1):
        first, second = block[:-distance], block[distance:]
        good = (first >= 0) & (second >= 0) & (text[:-distance] == text[distance:])
        good[: max(0, old - distance)] = False
        a, b = first[good].astype(np.int64), second[good].astype(np.int64)
        keys.append(np.minimum(a, b) * size + np.maximum(a, b))
        weights.append(np.full(len(a), 1 / distance))
    return np.concatenate(keys), np.concatenate(weights)


def _summed(keys: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> Run:
    """Sorted distinct keys, and the sum of each one's weights."""
    order = np.argsort(keys, kind="stable")
    keys, weights = keys[order], weights[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    return keys[firsts], np.add.reduceat(weights, firsts) if len(keys) else weights


def _merged(runs: list[Run]) -> Run:
    return _summed(np.concatenate([k for k, _ in runs]), np.concatenate([w for _, w in runs]))


def _spill(run: Run, path: Path) -> Run:
    """The same run, on disk."""
    opened: list[npt.NDArray[Any]] = []
    for part, suffix in zip(run, (".keys", ".sums"), strict=True):
        part.tofile(path.with_name(path.name + suffix))
        opened.append(np.memmap(path.with_name(path.name + suffix), part.dtype, "r"))
    return opened[0], opened[1]


def _ranges(runs: list[Run], memory_pairs: int) -> Iterator[Run]:
    """The merged pairs in order, a bounded range of keys at a time."""
    if not any(len(keys) for keys, _ in runs):
        return
    longest = max((keys for keys, _ in runs), key=len)
    step = max(1, memory_pairs // len(runs))
    borders = [*longest[step::step].tolist(), np.iinfo(np.int64).max]
    at = [0] * len(runs)
    for border in borders:
        ends = [int(np.searchsorted(keys, border)) for keys, _ in runs]
        yield _merged([(k[a:e], w[a:e]) for (k, w), a, e in zip(runs, at, ends, strict=True)])
        at = ends


def _deal(merged: Iterator[Run], size: int, out: Path, seed: int, memory_pairs: int) -> None:
    """Write both directions of every pair in random order, through buckets that fit in memory."""
    random = np.random.default_rng((seed, 1))
    heaps: list[Path] = []
    for number, (keys, sums) in enumerate(merged, 1):
        i, j = keys // size, keys % size
        own = i == j
        records = np.empty(len(keys) * 2 - int(own.sum()), PAIR)
        records["i"] = np.concatenate([i, j[~own]])
        records["j"] = np.concatenate([j, i[~own]])
        # a word beside itself is met from both sides, as in the released code
        records["x"] = np.concatenate([np.where(own, 2 * sums, sums), sums[~own]])
        path = out / f"run-heap-{number}"
        random.permutation(records).tofile(path)
        heaps.append(path)
    if not heaps:
        raise DataError("no two words stand near one another", fix="give more text")
    # each heap is shuffled; drawing from all of them at random in proportion shuffles the whole
    parts = [np.memmap(path, PAIR, "r") for path in heaps]
    left = np.array([len(part) for part in parts])
    at = np.zeros(len(parts), np.int64)
    with open(out / NAME, "wb") as file:
        while left.sum():
            take = random.multivariate_hypergeometric(left, min(memory_pairs, int(left.sum())))
            drawn = [p[a : a + t] for p, a, t in zip(parts, at, take, strict=True)]
            random.permutation(np.concatenate(drawn)).tofile(file)
            at, left = at + take, left - take
