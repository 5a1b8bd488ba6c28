"""BM25: which of many texts a query's words speak of (Robertson and Zaragoza 2009, equation 3.15).

With the inverse document frequency that never falls below zero, a text scores

    Σ over t:  ln(1 + (N − n + ½) / (n + ½)) · f (k₁ + 1) / (f + k₁ (1 − b + b · l / l̄))

for the terms t of the query: N texts, n of them hold t, f times here; l terms in this text, l̄ on
average. The counts are plain arrays, so that they can be kept in files and mapped into memory.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from inkstone.text.normalize import normalize

K1, B = 1.2, 0.75
CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
TERM = re.compile(rf"[{CJK}]+|[^\W_{CJK}]+")
_UNSPACED = re.compile(f"[{CJK}]")


def terms(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces, overlapping pairs of characters."""
    return [term for run in TERM.findall(normalize(text).casefold()) for term in pieces(run)]


def pieces(run: str) -> list[str]:
    """The terms of one match of `TERM`."""
    if len(run) > 1 and _UNSPACED.match(run):
        return [run[i : i + 2] for i in range(len(run) - 1)]
    return [run]


@dataclass(frozen=True)
class BM25:
    """How often which term stands in which text.

    Attributes:
        numbers: Of every term: its place in `starts`.
        starts: [V + 1] int64: where the postings of each term begin.
        texts: [P] int32: numbers of the texts that hold the term, ascending.
        counts: [P] int32: how often.
        lengths: [N] int32: terms of each text.
    """

    numbers: Mapping[str, int]
    starts: npt.NDArray[np.int64]
    texts: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Count the terms of texts, read once."""
        numbers: dict[str, int] = {}
        which, where, often, lengths = (array("i") for _ in range(4))
        for place, text in enumerate(texts):
            found = Counter(terms(text))
            which.extend(numbers.setdefault(term, len(numbers)) for term in found)
            where.extend([place] * len(found))
            often.extend(found.values())
            lengths.append(found.total())
        order = np.argsort(np.asarray(which), kind="stable")
        ends = np.bincount(np.asarray(which), minlength=len(numbers)).cumsum()
        starts = np.concatenate(([0], ends)).astype(np.int64)
        return cls(
            numbers, starts, np.asarray(where)[order], np.asarray(often)[order],
            np.asarray(lengths),
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.lengths)

    def rarity(self, term: str) -> float:
        """Inverse document frequency of a term, in nats."""
        n = self._slice(term).stop - self._slice(term).start
        return math.log1p((len(self) - n + 0.5) / (n + 0.5))

    def scores(self, query: str) -> npt.NDArray[np.float64]:
        """[N]: how well each text answers; 0 where it shares no term with the query."""
        total: npt.NDArray[np.float64] = np.zeros(len(self))
        mean = max(1.0, float(self.lengths.mean())) if len(self) else 1.0
        for term, times in sorted(Counter(terms(query)).items()):
            place = self._slice(term)
            numbers, f = self.texts[place], self.counts[place].astype(np.float64)
            slowed = f + K1 * (1 - B + B * self.lengths[numbers] / mean)
            total[numbers] += times * self.rarity(term) * f * (K1 + 1) / slowed
        return total

    def _slice(self, term: str) -> slice:
        number = self.numbers.get(term)
        if number is None:
            return slice(0, 0)
        return slice(int(self.starts[number]), int(self.starts[number + 1]))
