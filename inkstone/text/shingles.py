"""What a document is made of, for comparing: hashes of its word 5-grams.

A word is a run of letters and digits in lower case (ASCII; letters of two UTF-8 bytes count as they
are), so spacing, punctuation and case do not matter. A character of three or more bytes is a word
by itself: Chinese, Japanese, Thai and others are written without spaces. A document of fewer than
five words has no shingles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

WORDS = 5
PART_BYTES = 1 << 17  # longer documents are hashed in parts, so that arrays stay in the cache
U32 = np.uint32
_BASE = 0x9E3779B1  # odd, so it has an inverse modulo 2^32
_WIDE_CHARACTER = 0xE0  # first byte of a character of three or more bytes
_FOLD = bytes(
    byte if byte >= 128 else ord(chr(byte).lower()) if chr(byte).isalnum() else 0
    for byte in range(256)
)
_VALUES = (np.random.default_rng(5).integers(0, 2**32, 256, dtype=U32) | U32(1)).astype(U32)


def shingles(
    texts: Sequence[bytes | memoryview],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Hashes of the shingles of some texts (UTF-8), one after another, in order of appearance.

    A shingle's hash is a polynomial over the bytes of its words. Those of all shingles are
    differences of prefix sums, so every byte is touched once.

    Returns:
        Hashes [N], and offsets [len(texts) + 1]: where each text's begin.
    """
    raw = np.frombuffer(b" ".join([*texts, b""]).translate(_FOLD), np.uint8)
    inside = raw != 0
    starts = raw >= _WIDE_CHARACTER
    np.logical_or(starts[1:], inside[1:] > inside[:-1], out=starts[1:])
    starts[:1] |= inside[:1]
    letters = raw[inside]
    first = np.flatnonzero(starts[inside])  # of each word, among the letters
    power, inverse = _powers(len(letters))
    prefix = np.zeros(len(letters) + 1, U32)
    np.cumsum(_VALUES[letters] * power, out=prefix[1:])
    bounds = np.append(first, len(letters))

    ends = np.cumsum([len(text) + 1 for text in texts])
    words = np.zeros(len(texts) + 1, np.int64)  # before the end of each text
    words[1:] = np.searchsorted(np.flatnonzero(starts), ends)
    count = max(0, len(first) - WORDS + 1)
    begin, end = bounds[:count], bounds[WORDS:]
    hashes = _mix((prefix[end] - prefix[begin]) * inverse[begin])

    # the last four words of a text begin no shingle
    whole = np.ones(count, bool)
    for back in range(1, WORDS):
        at = words[1:] - back
        whole[at[(at >= words[:-1]) & (at < count)]] = False
    per_text = np.maximum(0, np.diff(words) - WORDS + 1)
    return hashes[whole], np.concatenate(([0], np.cumsum(per_text)))


def parts(text: bytes) -> list[bytes]:
    """A long text cut so that each part can be hashed by itself."""
    if len(text) <= PART_BYTES:
        return [text]
    return [text[at : at + PART_BYTES] for at in range(0, len(text), PART_BYTES)]


def jaccard(left: bytes, right: bytes) -> float:
    """Shared shingles of two texts over all their shingles."""
    ours, theirs = (
        np.unique(np.concatenate([shingles([part])[0] for part in parts(text)]))
        for text in (left, right)
    )
    common = len(np.intersect1d(ours, theirs, assume_unique=True))
    union = len(ours) + len(theirs) - common
    return common / union if union else 0.0


_tables: list[npt.NDArray[np.uint32]] = [np.ones(0, U32), np.ones(0, U32)]


def _powers(count: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """base^i and base^-i modulo 2^32 for i < count, kept between calls."""
    if len(_tables[0]) < count:
        size = max(2 * PART_BYTES, count)
        for place, base in enumerate((_BASE, pow(_BASE, -1, 2**32))):
            factors = np.full(size, base, U32)
            factors[0] = 1
            _tables[place] = np.cumprod(factors, dtype=U32)
    return _tables[0][:count], _tables[1]


def _mix(x: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Spread every bit over all bits (the finaliser of MurmurHash3)."""
    x ^= x >> U32(16)
    x *= U32(0x85EBCA6B)
    x ^= x >> U32(13)
    x *= U32(0xC2B2AE35)
    x ^= x >> U32(16)
    return x
