"""Guessing tokens ahead, so that one pass of the model may confirm several.

Every token of an answer has a random number of its own, guessed ahead or not. The model reads the
guesses along with the last token and chooses at each place as it always would; a guess counts as
long as it is what was chosen. So the answer is the one that would have come without guessing, to
the token: with exactly the model's distribution, as in Leviathan et al. 2023 ("Fast Inference from
Transformers via Speculative Decoding"), whose acceptance by a coin makes it equal in distribution
only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inkstone.inference.sampling import Draws

LONGEST = 4  # tokens that must have stood before
SHORTEST = 2
AHEAD = 8


class Guesser(Protocol):
    """What guesses."""

    def guess(
        self, texts: Sequence[Sequence[int]], draws: Sequence[Draws], rooms: Sequence[int]
    ) -> list[list[int]]:
        """Tokens that may come next.

        Args:
            texts: Prompt and answer so far, of each request.
            draws: Its settings and random numbers.
            rooms: Tokens that are wanted of each, at most.

        Returns:
            Guesses of each; none where there is nothing to go by.
        """


class PromptLookup:
    """What came next when the last few tokens stood there before (Saxena 2023, "Prompt Lookup
    Decoding"): summaries, corrections and code repeat what they were given.

    Args:
        longest: Tokens that are looked for, first so many, then fewer.
        shortest: Not fewer than these.
        ahead: Tokens that are guessed.
    """

    def __init__(
        self, longest: int = LONGEST, shortest: int = SHORTEST, ahead: int = AHEAD
    ) -> None:
        self.longest, self.shortest, self.ahead = longest, shortest, ahead

    def guess(
        self, texts: Sequence[Sequence[int]], draws: Sequence[Draws], rooms: Sequence[int]
    ) -> list[list[int]]:
        """As `Guesser`; of several places the last one."""
        return [
            self._one(list(ids), min(room, self.ahead))
            for ids, room in zip(texts, rooms, strict=True)
        ]

    def _one(self, ids: list[int], room: int) -> list[int]:
        if room < 1:
            return []
        for length in range(self.longest, self.shortest - 1, -1):
            end = ids[-length:]
            for place in range(len(ids) - length - 1, -1, -1):
                if ids[place + length - 1] == end[-1] and ids[place : place + length] == end:
                    return ids[place + length : place + length + room]
        return []
