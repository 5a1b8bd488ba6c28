"""Character n-grams of words, hashed into buckets.

Bojanowski, Grave, Joulin and Mikolov, "Enriching Word Vectors with Subword Information" (2017,
section 3.2): the word between the marks < and >, cut into all n-grams of some lengths, hashed with
FNV-1a. Buckets are those of the released fastText, whose bytes above 127 are negative numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FNV_OFFSET, FNV_PRIME, MASK = 2166136261, 16777619, 0xFFFFFFFF


@dataclass(frozen=True)
class NGrams:
    """Which n-grams a word has.

    Attributes:
        min_n: Shortest, in characters.
        max_n: Longest; 0 means that words have no n-grams.
        buckets: How many rows they share.
    """

    min_n: int
    max_n: int
    buckets: int

    def of(self, word: str) -> list[str]:
        """All n-grams of "<word>", in the order of where they begin, then of length."""
        marked = f"<{word}>"
        return [
            marked[start : start + n]
            for start in range(len(marked))
            for n in range(self.min_n, self.max_n + 1)
            if start + n <= len(marked) and not (n == 1 and start in (0, len(marked) - 1))
        ]

    def rows(self, word: str) -> npt.NDArray[np.int32]:
        """Buckets of a word's n-grams."""
        hashes = [fnv1a(gram.encode("utf-8", "surrogatepass")) for gram in self.of(word)]
        return np.array([h % self.buckets for h in hashes], np.int32)


def fnv1a(data: bytes) -> int:
    """32 bits of FNV-1a as in fastText: a byte above 127 fills the upper bits with ones."""
    h = FNV_OFFSET
    for byte in data:
        h ^= byte if byte < 128 else byte | 0xFFFFFF00
        h = h * FNV_PRIME & MASK
    return h
