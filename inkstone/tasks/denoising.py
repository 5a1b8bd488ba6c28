"""Denoising: write the text that was damaged.

Lewis et al. 2020 (BART), section 2.2. Text infilling: spans, whose lengths are drawn from a Poisson
distribution (λ = 3), are each replaced by one <mask>, until 30 % of the tokens are gone (section
5.1); a span of no token puts a <mask> between two. Sentence permutation: the sentences, which end
in full stops, come in a random order. The target is the text as it was.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from inkstone.config import Section
from inkstone.corpora.rows import Ids
from inkstone.errors import UsageError
from inkstone.tasks._corruption import Reconstruction
from inkstone.tokenizers.roles import ROBERTA, Roles
from inkstone.tokenizers.tokenizer import Tokenizer

FAMILY = "bart"  # where the recipe names none


class Config(Section):
    """Settings of denoising.

    Attributes:
        share: Of the tokens that are replaced; 0 leaves all.
        mean_span: λ, the mean length of a span.
        permute_sentences: Whether sentences change their places.
    """

    share: float = Field(default=0.3, ge=0, lt=1)
    mean_span: float = Field(default=3.0, gt=0, le=1000)
    permute_sentences: bool = True


class Objective(Reconstruction):
    """The whole text, out of what is left of it."""

    NAME = "denoising"
    config: Config

    def __init__(self, config: Section, tokenizer: Tokenizer, seq_len: int) -> None:
        super().__init__(config, tokenizer, seq_len)
        if self.codec.mask_id is None:
            raise UsageError("the tokenizer has no <mask> token, so nothing can be hidden")
        self.mask_id = self.codec.mask_id

    @staticmethod
    def roles(kind: str) -> Roles:
        return ROBERTA

    def corrupt(self, row: Ids, random: np.random.Generator) -> tuple[Ids, Ids]:
        damaged = row
        if self.config.permute_sentences:
            sentences = np.split(row, np.flatnonzero(self.boundaries.stops[row[:-1]]) + 1)
            damaged = np.concatenate([sentences[i] for i in random.permutation(len(sentences))])
        if self.config.share:
            damaged = self.infill(damaged, random)
        first, last = [self.codec.start_id], [self.codec.end_id]
        return np.concatenate((first, damaged, last)), np.concatenate((first, row, last))

    def infill(self, row: Ids, random: np.random.Generator) -> Ids:
        """[T] → spans replaced by one mask each; never longer than the row."""
        lengths = self._spans(len(row), random)
        gone = sum(lengths)
        slots = len(row) - gone + len(lengths)
        places = np.sort(random.permutation(slots)[: len(lengths)]) - np.arange(len(lengths))
        parts = list[Ids]()
        cursor = 0
        kept = 0  # tokens before the next span that stay
        for place, length in zip(places, lengths, strict=True):
            parts += [row[cursor : cursor + int(place) - kept], np.array([self.mask_id])]
            cursor += int(place) - kept + length
            kept = int(place)
        return np.concatenate([*parts, row[cursor:]])

    def _spans(self, length: int, random: np.random.Generator) -> list[int]:
        """Lengths of the spans of a row, in the order in which they lie."""
        left = max(1, round(self.config.share * length))
        spans = list[int]()
        while left > 0:
            spans.append(min(left, int(random.poisson(self.config.mean_span))))
            left -= spans[-1]
        while len(spans) > sum(spans):  # else the row grows
            spans.remove(0)
        return [spans[i] for i in random.permutation(len(spans))]

    @property
    def room(self) -> int:
        return self.seq_len - 2

    @property
    def lengths(self) -> tuple[float, float]:
        share, span = self.config.share, self.config.mean_span
        return 2 + self.room * (1 - share + share / span), float(self.seq_len)

    @property
    def rule(self) -> str:
        c = self.config
        order = ", sentences permuted" if c.permute_sentences else ""
        return (
            f"documents in pieces of at most {self.room} tokens{order}, {c.share:.0%} of the "
            f"tokens in spans of Poisson({c.mean_span:g}) replaced by a mask each, drawn with a "
            "fixed seed; every token of the text and its end scored, after the right ones before it"
        )
