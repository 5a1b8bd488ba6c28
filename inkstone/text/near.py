"""Which documents of a corpus are near duplicates of one another.

Near means: their sets of word 5-grams have a Jaccard similarity of at least the threshold (Broder
1997). Candidates share a band of their MinHash signatures (Leskovec et al., Mining of Massive
Datasets, §3.4). The signature then tells most apart, and where it cannot, the texts are compared
themselves. A pair just at the threshold of 0.8 is found with probability 0.99, at 0.9 with 0.99999.

Signatures go to disk while documents stream by. The search holds one band in memory at a time:
24 bytes a document, 12 more while documents are added.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rensa

from inkstone.text.shingles import PART_BYTES, jaccard, parts, shingles

HASHES = 96  # of a signature
RECALL = 0.99  # at the threshold
MARGIN = 0.13  # three standard deviations of a similarity estimated from 96 hashes
SEED = 0x1A5
ROUNDS = 8
BLOCK_ROWS = 1 << 14
_PAIRS = 1 << 15  # compared at a time
Numbers = npt.NDArray[np.int64]


def bands(threshold: float) -> tuple[int, int]:
    """Number of bands and their width: the widest with which `RECALL` is reached.

    Two signatures share one of b bands of r hashes with probability 1 - (1 - s^r)^b.
    """
    for rows in range(HASHES, 1, -1):
        if 1 - (1 - threshold**rows) ** (HASHES // rows) >= RECALL:
            return HASHES // rows, rows
    return HASHES, 1


class NearDuplicates:
    """Collects documents, then tells which belong together.

    Args:
        folder: A private folder for signatures and band keys.
        threshold: Jaccard similarity from which two documents are near.
        fetch: Gives back a document (UTF-8) by its number.
    """

    def __init__(self, folder: Path, threshold: float, fetch: Callable[[int], bytes]) -> None:
        self._threshold, self._fetch = threshold, fetch
        self._bands, self._rows = bands(threshold)
        self._signatures = open(folder / "signatures.bin", "w+b", buffering=1 << 18)  # noqa: SIM115
        self._keys = open(folder / "keys.bin", "w+b", buffering=0)  # noqa: SIM115
        self._numbers = array("Q")  # of the documents that have a signature
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._count = 0
        self._block: list[npt.NDArray[np.uint32]] = []

    def add(self, data: bytes) -> None:
        """The next document, normalised, in UTF-8."""
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= PART_BYTES or len(self._waiting) >= 1 << 12:
            self._hash_waiting()

    def groups(self) -> Numbers:
        """For each document the number of the first one of its group; its own if it is alone."""
        self._hash_waiting()
        self._write_block(last=True)
        labels = np.arange(self._count)
        if len(self._numbers) > 1:
            self._signatures.flush()
            search = _Search(self)
            labels[search.numbers] = search.numbers[search.run()]
        return labels

    def close(self) -> None:
        self._signatures.close()
        self._keys.close()

    def _hash_waiting(self) -> None:
        """Signatures of the waiting documents."""
        if not self._waiting:
            return
        cut = [parts(text) for text in self._waiting]
        hashes, offsets = shingles([part for texts in cut for part in texts])
        begins = np.cumsum([0] + [len(texts) for texts in cut])
        counts = np.diff(offsets[begins])
        used = np.diff(offsets) > 0  # a part of spaces has no shingles, and so no signature
        if used.any():
            begin = np.append(offsets[:-1][used], offsets[-1]).astype(np.uint64)
            matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
                hashes.astype(np.uint64), begin, HASHES, SEED
            )
            rows = np.array(matrix.to_rows(), np.uint32)
            if len(rows) > np.count_nonzero(counts):  # the least of its parts' is the document's
                owner = np.repeat(np.arange(len(cut)), np.diff(begins))[used]
                rows = np.minimum.reduceat(rows, np.flatnonzero(np.diff(owner, prepend=-1)))
            self._numbers.extend((np.flatnonzero(counts) + self._count).tolist())
            self._write(rows)
        self._count += len(cut)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _write(self, rows: npt.NDArray[np.uint32]) -> None:
        self._signatures.write(rows.astype(np.uint8).tobytes())
        split = rows[:, : self._bands * self._rows].reshape(len(rows), self._bands, self._rows)
        keys = np.zeros((len(rows), self._bands), np.uint32)
        for column in range(self._rows):
            keys = (keys ^ split[:, :, column]) * np.uint32(0x9E3779B1)
            keys ^= keys >> np.uint32(15)
        self._block.append(keys)
        self._write_block()

    def _write_block(self, last: bool = False) -> None:
        """Whole blocks, band by band, so that one band can be read without the others."""
        ready = sum(map(len, self._block))
        if ready < BLOCK_ROWS and not (last and ready):
            return
        keys = np.concatenate(self._block)
        while len(keys) >= BLOCK_ROWS or (last and len(keys)):
            block, keys = keys[:BLOCK_ROWS], keys[BLOCK_ROWS:]
            padded = np.zeros((self._bands, BLOCK_ROWS), np.uint32)
            padded[:, : len(block)] = block.T
            self._keys.write(padded.tobytes())
        self._block = [keys]

    def band(self, number: int) -> npt.NDArray[np.uint32]:
        """The keys of one band, in the order of the documents that have a signature."""
        keys = np.empty(len(self._numbers), np.uint32)
        for at in range(0, len(keys), BLOCK_ROWS):
            size = min(BLOCK_ROWS, len(keys) - at)
            self._keys.seek(4 * (at * self._bands + number * BLOCK_ROWS))
            keys[at : at + size] = np.frombuffer(self._keys.read(4 * size), np.uint32)
        return keys


class _Search:
    """Joins documents band by band; `labels` holds the first row of each group."""

    def __init__(self, parent: NearDuplicates) -> None:
        self._parent, self._threshold = parent, parent._threshold
        self.numbers: Numbers = np.frombuffer(parent._numbers, np.uint64).astype(np.int64)
        self.labels = np.arange(len(self.numbers))
        self._signatures = np.memmap(
            parent._signatures.name, np.uint8, "r", shape=(len(self.numbers), HASHES)
        )

    def run(self) -> Numbers:
        for number in range(self._parent._bands):
            ordered = self._parent.band(number).astype(np.uint64) << np.uint64(32)
            ordered |= np.arange(len(ordered), dtype=np.uint64)
            ordered.sort()
            keys = (ordered >> np.uint64(32)).astype(np.uint32)
            equal = keys[1:] == keys[:-1]
            shared = np.append(equal, False) | np.append(False, equal)
            rows = (ordered[shared] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            self._join_buckets(rows, keys[shared])
        return self.labels

    def _join_buckets(self, rows: Numbers, keys: npt.NDArray[np.uint32]) -> None:
        """Compare each row with the first of its bucket, then those that are left, again."""
        for _ in range(ROUNDS):
            if not len(rows):
                return
            begins = np.append(True, keys[1:] != keys[:-1])
            first = rows[np.flatnonzero(begins)][np.cumsum(begins) - 1]
            open_ = self.labels[rows] != self.labels[first]
            left, right = first[open_], rows[open_]
            near = self._near(left, right)
            self._join(left[near], right[near])
            rest = np.flatnonzero(open_)[~near]
            rows, keys = rows[rest], keys[rest]

    def _near(self, left: Numbers, right: Numbers) -> npt.NDArray[np.bool_]:
        near = np.zeros(len(left), bool)
        for at in range(0, len(left), _PAIRS):
            pairs = left[at : at + _PAIRS], right[at : at + _PAIRS]
            equal = (self._signatures[pairs[0]] == self._signatures[pairs[1]]).mean(1)
            similarity = (equal - 1 / 256) * 256 / 255  # 8 bits agree by chance (Li & König 2010)
            found = similarity >= min(1.0, self._threshold + MARGIN)
            for i in np.flatnonzero(~found & (similarity >= self._threshold - MARGIN)).tolist():
                texts = [self._parent._fetch(int(self.numbers[side[i]])) for side in pairs]
                found[i] = jaccard(*texts) >= self._threshold
            near[at : at + _PAIRS] = found
        return near

    def _join(self, left: Numbers, right: Numbers) -> None:
        labels = self.labels
        while len(left):
            a, b = labels[left], labels[right]
            low, high = np.minimum(a, b), np.maximum(a, b)
            np.minimum.at(labels, high, low)
            while not np.array_equal(following := labels[labels], labels):
                labels[:] = following
            apart = labels[left] != labels[right]
            left, right = left[apart], right[apart]
