"""ROUGE: how much of a reference a summary says, and how much else (Lin 2004).

For n-grams (section 2), with m of them in common, each as often as in the text that has it less:

    precision = m / n-grams of the summary,   recall = m / n-grams of the reference,
    ROUGE-N = 2 · precision · recall / (precision + recall)

ROUGE-L (section 3.1) counts the longest common subsequence of words instead. Of several references
the best counts, for each ROUGE of its own, as the authors of SciTLDR score (Cachola et al. 2020,
section 4.2). Texts are lower-cased; a unit is a run of letters and digits, or one Chinese or
Japanese character. Words are not stemmed, and both texts are read as one sequence each.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_UNIT = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")


def units(text: str) -> list[str]:
    """What is counted: words in lower case, and of Chinese every character."""
    return _UNIT.findall(text.lower())


def rouge_n(found: Sequence[str], reference: Sequence[str], n: int) -> float:
    """F1 of n-grams, from 0 to 1; 0 where one side has none."""
    mine, theirs = _grams(found, n), _grams(reference, n)
    return _f1((mine & theirs).total(), mine.total(), theirs.total())


def rouge_l(found: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence, from 0 to 1."""
    return _f1(common_subsequence(found, reference), len(found), len(reference))


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, all columns of the table at once.

    Bit i of `open` is 0 where the i-th element of `a` adds one to the length (Hyyrö 2004, "Bit-
    Parallel LCS-length Computation Revisited", figure 2).
    """
    places: dict[str, int] = {}
    for place, unit in enumerate(a):
        places[unit] = places.get(unit, 0) | 1 << place
    full = (1 << len(a)) - 1
    rows = full
    for unit in b:
        hit = rows & places.get(unit, 0)
        rows = (rows + hit | rows - hit) & full
    return len(a) - rows.bit_count()


KINDS: Mapping[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "rouge1": lambda found, reference: rouge_n(found, reference, 1),
    "rouge2": lambda found, reference: rouge_n(found, reference, 2),
    "rougeL": rouge_l,
}


def best(kind: str, found: str, references: Sequence[str]) -> float:
    """One of `KINDS`, against the best of the references.

    Args:
        kind: "rouge1", "rouge2" or "rougeL".
        found: The summary.
        references: At least one.
    """
    mine = units(found)
    return max(KINDS[kind](mine, units(reference)) for reference in references)


def _grams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def _f1(common: int, found: int, wanted: int) -> float:
    return 2 * common / (found + wanted) if common else 0.0
