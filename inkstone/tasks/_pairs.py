"""Pairs of texts: a batch of them, and which text is right for which."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from inkstone.tasks._batch import TokenBatch


@dataclass(frozen=True)
class PairBatch(TokenBatch):
    """Different texts and different candidates, and which belong together.

    Attributes:
        input_ids: [U, T] texts; `attention_mask` is theirs.
        targets: [B] int64: the candidate of each pair; IGNORE_INDEX where there is none.
        own: [B] int64: the text of each pair.
        pair_ids: [C, S] candidates: the pairs' second texts, then negatives.
        pair_mask: [C, S] bool.
        scores: [B] float; None where pairs have none.
        at_once: Rows that are computed together; 0: all.
    """

    own: Tensor | None = None
    pair_ids: Tensor | None = None
    pair_mask: Tensor | None = None
    scores: Tensor | None = None
    at_once: int = 0

    def __len__(self) -> int:
        return len(self.targets)

    def split(self, rows: int) -> Iterator[Self]:
        """One part: pairs are compared with all of their step. Only computing goes by `rows`."""
        yield replace(self, at_once=rows)

    def _map(self, change: Any) -> Self:
        fields = {k: change(v) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **fields)


class Different:
    """Rows of ids, equal ones once."""

    def __init__(self) -> None:
        self.rows: list[npt.NDArray[np.int64]] = []
        self._numbers: dict[bytes, int] = {}

    def number(self, ids: npt.ArrayLike) -> int:
        """Of this row; a new one gets the next."""
        row = np.asarray(ids, np.int64)
        known = self._numbers.setdefault(row.tobytes(), len(self.rows))
        if known == len(self.rows):
            self.rows.append(row)
        return known


class Candidates:
    """The different second texts of pairs, and which of them are right for each first text.

    Args:
        pairs: (text, what belongs to it).

    Attributes:
        numbers: Of each candidate, in the order of their first pairs.
        first: The pair that each candidate is first in.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]]) -> None:
        self.numbers: dict[str, int] = {}
        self.first: list[int] = []
        self._right: dict[str, list[int]] = {}
        for place, (text, pair) in enumerate(pairs):
            number = self.numbers.setdefault(pair, len(self.numbers))
            if number == len(self.first):
                self.first.append(place)
            self._right.setdefault(text, []).append(number)

    def place(self, text: str, scores: npt.NDArray[Any]) -> int:
        """Where the best right candidate stands when all are sorted, from 1; ties count against it.

        Args:
            text: One of the first texts.
            scores: [C] of all candidates.
        """
        right = self._right[text]
        best = scores[right].max()
        wrong = np.delete(scores, right)
        return 1 + int((wrong >= best).sum())
