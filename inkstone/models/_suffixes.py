"""What the end of an unknown word says of its tag (Brants 2000, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Suffixes:
    """P(state | last letters), smoothed from shorter to longer endings (equations 7 to 10).

        P(s | l₁…lᵢ) = (P̂(s | l₁…lᵢ) + θ P(s | l₂…lᵢ)) / (1 + θ)

    from P̂(s) without any letters, where θ is the standard deviation of the P̂(s). The endings of
    capitalized words and of others are kept apart.

    Args:
        words: Rare words, each with the counts of its states: unknown words resemble them.
        prior: [S] P̂(s) over the whole corpus.
        length: Longest ending.
    """

    def __init__(
        self, words: Iterable[tuple[str, Mapping[int, int]]], prior: Floats, length: int
    ) -> None:
        self.prior, self.length = prior, length
        self.theta = float(prior.std(ddof=1)) if len(prior) > 1 else 0.0
        self._counts: dict[tuple[bool, str], dict[int, int]] = {}
        for word, states in words:
            for key in self._endings(word):
                counts = self._counts.setdefault(key, {})
                for state, count in states.items():
                    counts[state] = counts.get(state, 0) + count

    def probabilities(self, word: str) -> Floats:
        """[S] P(state | word) of a word that was never seen."""
        p = self.prior
        for key in self._endings(word):
            counts = self._counts.get(key)
            if counts is None:
                break
            p = p * self.theta
            p[list(counts)] += np.array(list(counts.values())) / sum(counts.values())
            p /= 1 + self.theta
        return p

    def _endings(self, word: str) -> Iterable[tuple[bool, str]]:
        """From no letters to the longest ending."""
        capital = is_capitalized(word)
        for n in range(min(self.length, len(word)) + 1):
            yield capital, word[len(word) - n :]


def is_capitalized(word: str) -> bool:
    """Whether the first letter is a capital."""
    return word[:1].isupper()
