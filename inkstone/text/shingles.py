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
_LETTER, _WIDE = 1, 2  # a byte inside of a word, and the first byte of a wide character
_NO_LETTERS = bytes(byte for byte in range(128) if not chr(byte).isalnum())
_FOLD = bytes(range(128)).lower() + bytes(range(128, 256))
_KIND = bytes(
    0 if byte in _NO_LETTERS else _WIDE if byte >= 0xE0 else _LETTER for byte in range(256)
)


def shingles(texts: Sequence[bytes]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Hashes of the shingles of some texts (UTF-8), one after another, in order of appearance.

    A shingle's hash is a polynomial over the letters of its words. Those of all shingles are
    differences of prefix sums, so every byte is touched once.

    Returns:
        Hashes [N], and offsets [len(texts) + 1]: where each text's begin.
    """
    raw = b" ".join([*texts, b""])
    kinds = np.frombuffer(raw.translate(_KIND), np.uint8)
    starts = kinds == _WIDE
    starts[1:] |= kinds[1:] > kinds[:-1]  # after a separator; a wide character is a start anyway
    starts[:1] |= kinds[:1] > 0
    ends = kinds > 0
    ends[:-1] &= starts[1:] | (kinds[1:] == 0)
    first = np.flatnonzero(starts)
    lengths = np.flatnonzero(ends) - first + 1
    bounds = np.zeros(len(first) + 1, np.int64)  # of the words among all letters
    np.cumsum(lengths, out=bounds[1:])
    letters = np.frombuffer(raw.translate(_FOLD, _NO_LETTERS), np.uint8)
    power, inverse = _powers(len(letters))
    prefix = np.zeros(len(letters) + 1, U32)
    np.cumsum(letters * power, out=prefix[1:])
    at_bounds = prefix[bounds]

    count = max(0, len(first) - WORDS + 1)
    begin = bounds[:count]
    hashes = _mix((at_bounds[WORDS:] - at_bounds[:count]) * inverse[begin])

    # the last four words of a text begin no shingle
    text_ends = np.cumsum([len(text) + 1 for text in texts])
    words = np.zeros(len(texts) + 1, np.int64)
    words[1:] = np.searchsorted(first, text_ends)  # before the end of each text
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
