"""Span corruption: write what was cut out of a text, piece by piece.

Raffel et al. 2020 (T5), section 3.1.4 and figure 2: 15 % of the tokens are cut out in spans of 3 on
average; each span leaves a sentinel of its own (<extra_id_0>, <extra_id_1>, …), and the target is
every sentinel with the tokens that it stands for, then one more sentinel that ends it:

    Thank you <extra_id_0> me to your party <extra_id_1> week
    <extra_id_0> for inviting <extra_id_1> last <extra_id_2>

Numbers of tokens and spans are exact, and where spans lie is uniform, as in the authors' code
(github.com/google-research/text-to-text-transfer-transformer): text and spans take turns, a text
first.
"""

from __future__ import annotations

import itertools

import numpy as np
from pydantic import Field

from inkstone.config import Section
from inkstone.corpora.rows import Ids
from inkstone.errors import UsageError
from inkstone.tasks._corruption import Reconstruction, partition
from inkstone.tokenizers.roles import T5, Roles
from inkstone.tokenizers.tokenizer import Tokenizer

FAMILY = "t5"  # where the recipe names none


class Config(Section):
    """Settings of span corruption.

    Attributes:
        share: Of the tokens that are cut out.
        mean_span: Tokens of a span, on average.
    """

    share: float = Field(default=0.15, gt=0, lt=1)
    mean_span: float = Field(default=3.0, ge=1, le=1000)


class Objective(Reconstruction):
    """Missing spans, each behind its sentinel."""

    NAME = "span_corruption"
    config: Config

    def __init__(self, config: Section, tokenizer: Tokenizer, seq_len: int) -> None:
        super().__init__(config, tokenizer, seq_len)
        names = (f"<extra_id_{number}>" for number in itertools.count())
        found = map(tokenizer.backend.token_to_id, names)
        self.sentinels = list(itertools.takewhile(lambda token: token is not None, found))
        if len(self.sentinels) < 2:
            raise UsageError("the tokenizer has no sentinels <extra_id_0>, <extra_id_1>, …")

    @staticmethod
    def roles(kind: str) -> Roles:
        return T5

    def corrupt(self, row: Ids, random: np.random.Generator) -> tuple[Ids, Ids]:
        cut, spans = self.counts(len(row))
        gone = partition(cut, spans, random)
        kept = partition(len(row) - cut, spans, random)
        ends = np.cumsum(np.stack((kept, gone), 1).ravel())
        parts = np.split(row, ends[:-1])
        source, target = list[Ids](), list[Ids]()
        for number in range(spans):
            mark = np.array([self.sentinels[number]])
            source += [parts[2 * number], mark]
            target += [mark, parts[2 * number + 1]]
        end = [self.tokenizer.eos_id]
        return np.concatenate([*source, end]), np.concatenate(
            [*target, [self.sentinels[spans]], end]
        )

    def counts(self, length: int) -> tuple[int, int]:
        """Tokens that are cut out of a row of `length` (two at least), and in how many spans."""
        cut = min(max(round(length * self.config.share), 1), length - 1)
        spans = max(1, round(cut / self.config.mean_span))
        return cut, min(spans, cut, length - cut, len(self.sentinels) - 1)

    @property
    def room(self) -> int:
        """The longest text whose source and target both fit."""
        length = 2
        while max(self._lengths(length + 1)) <= self.seq_len:
            length += 1
        return length

    @property
    def lengths(self) -> tuple[float, float]:
        return self._lengths(self.room)

    def _lengths(self, length: int) -> tuple[int, int]:
        """Tokens of source and target."""
        cut, spans = self.counts(length)
        return length - cut + spans + 1, cut + spans + 2

    @property
    def rule(self) -> str:
        return (
            f"documents in pieces of at most {self.room} tokens; {self.config.share:.0%} of each "
            f"cut out in spans of {self.config.mean_span:g} on average, drawn with a fixed seed; "
            "every token of the target scored, sentinels and end included, after the right ones "
            "before it"
        )
