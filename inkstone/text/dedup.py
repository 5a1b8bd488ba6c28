"""Exact and near duplicates, found while documents stream by.

Near means: the sets of word 5-grams have a Jaccard similarity of at least the threshold (Broder
1997). Candidates come from MinHash signatures cut into bands (Leskovec et al., Mining of Massive
Datasets, §3.4), and every candidate is then compared exactly. A pair at similarity 0.8 is found
with probability 0.985, at 0.9 with 0.99999.

Memory is bounded: 16 bytes a document for equality and a table of at most 64 MB for nearness; once
that is full, later documents displace earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import rensa

SHINGLE_WORDS = 5
BANDS, ROWS = 14, 6
TABLE_BITS = (12, 23)  # of the table of nearness: it grows from 32 kB to at most 64 MB
SEED = 0x1A5
U64 = np.uint64
_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_FOLD = np.zeros(256, np.uint8)  # letters in lower case, digits, bytes of other scripts; else 0
for _byte in range(256):
    if _byte >= 128 or chr(_byte).isalnum():
        _FOLD[_byte] = ord(chr(_byte).lower()) if _byte < 128 else _byte


class ExactIndex:
    """A growing open-addressing table of 64-bit fingerprints."""

    def __init__(self) -> None:
        self._table = np.zeros(1 << 12, U64)
        self._count = 0

    def add(self, fingerprint: int) -> bool:
        """Remember a fingerprint; False when it was known."""
        fingerprint = fingerprint or 1  # zero marks an empty slot
        slot = self._find(fingerprint)
        if self._table[slot]:
            return False
        self._table[slot] = fingerprint
        self._count += 1
        if self._count * 2 > len(self._table):
            old = self._table[self._table != 0]
            self._table = np.zeros(len(self._table) * 2, U64)
            for value in old.tolist():
                self._table[self._find(value)] = value
        return True

    def _find(self, fingerprint: int) -> int:
        mask = len(self._table) - 1
        slot = fingerprint & mask
        while self._table[slot] and int(self._table[slot]) != fingerprint:
            slot = (slot + 1) & mask
        return slot


def fingerprint(text: str) -> int:
    """64 bits of BLAKE2b over the text without outer white space."""
    digest = hashlib.blake2b(text.strip().encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class NearIndex:
    """Finds earlier documents that are near a new one.

    Args:
        threshold: Jaccard similarity from which two documents are near.
        fetch: Gives back the text of an earlier document by its number.
    """

    def __init__(self, threshold: float, fetch: Callable[[int], str]) -> None:
        self.threshold, self._fetch = threshold, fetch
        self._bits, self._count = TABLE_BITS[0], 0
        # an entry: 32 bits of the key, whose top bits are the slot, and the document's number + 1
        self._table = np.zeros(1 << self._bits, U64)

    def keys(self, texts: list[str]) -> npt.NDArray[np.uint64]:
        """Band hashes of documents, [n, BANDS]."""
        hashes, offsets = shingles(texts)
        matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets, BANDS * ROWS, SEED
        )
        rows = np.array(matrix.to_rows(), np.uint64).reshape(len(texts), BANDS, ROWS)
        keys = np.zeros((len(texts), BANDS), U64)
        for column in range(ROWS):
            keys = _mix(keys ^ rows[:, :, column])
        return _mix(keys + np.arange(BANDS, dtype=U64))

    def near(self, keys: npt.NDArray[np.uint64], text: str) -> list[int]:
        """Numbers of earlier documents near this one; keys [BANDS] of `keys`."""
        entries = self._table[self._slots(keys)]
        hits = entries[(entries ^ keys) >> U64(32) == 0]
        if not len(hits):
            return []
        own = _shingle_set(text)
        found = []
        for entry in np.unique(hits & U64(0xFFFFFFFF)).tolist():
            if entry and _jaccard(own, _shingle_set(self._fetch(entry - 1))) >= self.threshold:
                found.append(entry - 1)
        return found

    def add(self, keys: npt.NDArray[np.uint64], number: int) -> None:
        """Remember document `number` (below 2^32 - 1) under its keys."""
        self._table[self._slots(keys)] = (keys >> U64(32) << U64(32)) | U64(number + 1)
        self._count += BANDS
        if self._count * 2 > len(self._table) and self._bits < TABLE_BITS[1]:
            entries = self._table[self._table != 0]
            self._bits += 1
            self._table = np.zeros(1 << self._bits, U64)
            self._table[self._slots(entries)] = entries

    def _slots(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        return keys >> U64(64 - self._bits)


def shingles(texts: list[str]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Hashes of the word 5-grams of each text, flat, and where each text's begin.

    Words are told apart by anything but letters and digits, in lower case; a character of a script
    without spaces (three or more UTF-8 bytes) is a word. A shorter text is one shingle.

    A polynomial hash over the bytes from a word's start to the start of the fifth word after it:
    differences of prefix sums, so every byte is touched once.
    """
    encoded = [t.encode("utf-8") for t in texts]
    raw = np.frombuffer(b"\n".join(encoded) + b"\n", np.uint8)
    folded = _FOLD[raw]
    inside = folded != 0
    start = inside & ((raw >= 0xE3) | np.concatenate(([True], ~inside[:-1])))
    words = np.flatnonzero(start)
    ends = np.cumsum([len(e) + 1 for e in encoded])
    # squeeze out what is no word, so that punctuation and spacing do not matter
    kept = folded[inside].astype(U64) + (start[inside].astype(U64) << U64(8))
    power, inverse = _powers(len(kept) + 1)
    prefix = np.concatenate((np.zeros(1, U64), np.cumsum(kept * power[: len(kept)])))
    place = np.cumsum(inside) - inside  # position among the kept bytes
    first = place[words]
    document = np.searchsorted(ends, words, side="right")
    per_text = np.bincount(document, minlength=len(texts))
    last_word = np.cumsum(per_text)[document]  # one past the last word of the same text
    after = np.minimum(np.arange(len(words)) + SHINGLE_WORDS, last_word)
    bounds = np.concatenate((first, [len(kept)]))
    hashes = _mix((prefix[bounds[after]] - prefix[first]) * inverse[first])
    # the last words of a text start no full shingle; a text that is too short keeps its first
    full = np.arange(len(words)) + SHINGLE_WORDS <= last_word
    full |= np.arange(len(words)) == last_word - per_text[document]
    counts = np.bincount(document[full], minlength=len(texts))
    return hashes[full], np.concatenate(([0], np.cumsum(counts))).astype(U64)


def _shingle_set(text: str) -> npt.NDArray[np.uint64]:
    return np.unique(shingles([text])[0])


def _jaccard(left: npt.NDArray[np.uint64], right: npt.NDArray[np.uint64]) -> float:
    common = len(np.intersect1d(left, right, assume_unique=True))
    union = len(left) + len(right) - common
    return common / union if union else 0.0


_tables: dict[str, npt.NDArray[np.uint64]] = {}


def _powers(count: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """base^i and base^-i modulo 2^64 for i < count, kept between calls."""
    if len(_tables.get("power", ())) < count:
        size = 1 << (count - 1).bit_length()
        for name, base in (("power", _BASE), ("inverse", pow(_BASE, -1, 2**64))):
            factors = np.full(size, base, U64)
            factors[0] = 1
            _tables[name] = np.cumprod(factors, dtype=U64)
    return _tables["power"], _tables["inverse"]


def _mix(x: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014)."""
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))
