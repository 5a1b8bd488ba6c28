"""Fill-in-the-middle: a decoder writes what stands between two texts (Bavarian et al. 2022).

A document is cut at two random characters into prefix, middle and suffix, and the middle is moved
to the end (section 3):

    PSM   <|fim_prefix|> prefix <|fim_suffix|> suffix <|fim_middle|> middle <|endoftext|>
    SPM   <|fim_prefix|> <|fim_suffix|> suffix <|fim_middle|> prefix middle <|endoftext|>

The loss is that of language modelling over all tokens, so that the model goes on continuing text as
well ("FIM for free", section 4). Cuts fall between characters, not tokens, and the parts are
encoded each for itself: whoever asks stops typing inside a word. The names of the control tokens
are those of StarCoder and Qwen2.5-Coder.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.corpora.rows import Ids, RowStream, Windows
from inkstone.corpora.shards import Corpus
from inkstone.errors import UsageError
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tasks import _objective
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._objective import HELD_OUT_SEED, in_batches
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import EOS, Tokenizer

PREFIX, SUFFIX, MIDDLE = "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"
ROLES = Roles((EOS, PREFIX, SUFFIX, MIDDLE), {"eos_token": EOS}, "$A", "$A $B")
FAMILY = "llama"  # where the recipe names none
SPARE = 8  # tokens of a row for control tokens and for words that are cut in two


class Config(Section):
    """Settings of fill-in-the-middle.

    Attributes:
        fim_rate: Share of the documents that are rearranged; the others are left as they are.
        spm_rate: Share of those that come as SPM; the others as PSM.
    """

    fim_rate: float = Field(default=0.5, ge=0, le=1)
    spm_rate: float = Field(default=0.5, ge=0, le=1)


def has_marks(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer has the control tokens: whether its model may have learned to fill."""
    return len(_marks(tokenizer)) == 3


def _marks(tokenizer: Tokenizer) -> list[int]:
    ids = [tokenizer.backend.token_to_id(name) for name in (PREFIX, SUFFIX, MIDDLE)]
    return [token for token in ids if token is not None and token in tokenizer.special_ids]


class Marks:
    """The ids of the control tokens, and prompts made with them.

    Raises:
        UsageError: The tokenizer has no such tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if not has_marks(tokenizer):
            raise UsageError(
                "this model was not trained to fill in the middle",
                fix="train one that is: inkstone train code-python --data FOLDER",
            )
        self.prefix, self.suffix, self.middle = _marks(tokenizer)

    def psm(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """What stands before the middle."""
        return [self.prefix, *prefix, self.suffix, *suffix, self.middle]

    def spm(self, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Likewise, the suffix first, so that the middle goes on where the prefix ends."""
        return [self.prefix, self.suffix, *suffix, self.middle, *prefix]


class Objective(_objective.Objective):
    """Continue text, and fill in what was cut out of it."""

    NAME = "fill_in_the_middle"
    UNIT = "token"
    KINDS = ("causal",)
    config: Config

    def __init__(self, config: Section, tokenizer: Tokenizer, seq_len: int) -> None:
        super().__init__(config, tokenizer, seq_len)
        self.marks = Marks(tokenizer)

    @staticmethod
    def tokenizer_kind(family: ModuleType) -> str:
        return "bpe"

    @staticmethod
    def roles(kind: str) -> Roles:
        return ROLES

    def fields(self, family: ModuleType) -> dict[str, Any]:
        return {}

    def stream(self, corpus: Corpus, *, tokens: int, seed: int) -> RowStream:
        def collate(numbers: Sequence[int], rows: Sequence[Ids]) -> TokenBatch:
            return self.collate(numbers, rows, seed)

        frame = self.seq_len - self.room
        return RowStream(Windows(corpus, self.room), collate, tokens=tokens, frame=frame, seed=seed)

    def held_out(self, corpus: Corpus, max_tokens: int | None = None) -> Iterator[TokenBatch]:
        for numbers, rows in in_batches(Windows(corpus, self.room), max_tokens):
            yield self.collate(numbers, rows, HELD_OUT_SEED)

    def collate(self, numbers: Sequence[int], rows: Sequence[Ids], seed: int) -> TokenBatch:
        made = [self.arrange(r, self.random(seed, n)) for n, r in zip(numbers, rows, strict=True)]
        input_ids, mask = pad([row[:-1] for row in made], self.codec.pad_id)
        targets, _ = pad([row[1:] for row in made], IGNORE_INDEX)
        return TokenBatch(input_ids, targets, mask)

    def arrange(self, row: Ids, random: np.random.Generator) -> Ids:
        """[T] → [at most seq_len + 1]; every document, or the part of it in the row, by itself."""
        out: list[int] = []
        for part in np.split(row, np.flatnonzero(row[:-1] == self.tokenizer.eos_id) + 1):
            ids = part.tolist()
            chosen = random.random() < self.config.fim_rate
            cut = self.cut(ids, random) if chosen else None
            out += ids if cut is None else self._moved(*cut, random)
        if len(out) < 2:  # a corpus of one token
            out.append(self.tokenizer.eos_id)
        return np.asarray(out[: self.seq_len + 1], np.int64)

    def cut(self, ids: Sequence[int], random: np.random.Generator) -> tuple[str, str, str] | None:
        """Prefix, middle and suffix; None where a window begins or ends inside a character."""
        text = self.tokenizer.decode(ids)
        if len(text) < 2 or "\N{REPLACEMENT CHARACTER}" in text:
            return None
        return self._cut(text, random)

    def _cut(self, text: str, random: np.random.Generator) -> tuple[str, str, str]:
        first, last = np.sort(random.integers(0, len(text) + 1, size=2)).tolist()
        return text[:first], text[first:last], text[last:]

    def _moved(
        self, prefix: str, middle: str, suffix: str, random: np.random.Generator
    ) -> list[int]:
        before, between, after = self.tokenizer.encode_batch([prefix, middle, suffix])
        order = self.marks.spm if random.random() < self.config.spm_rate else self.marks.psm
        return [*order(before, after), *between, self.tokenizer.eos_id]

    @property
    def room(self) -> int:
        return self.seq_len - SPARE

    def hide(self, row: Ids, number: int) -> str:
        text = self.tokenizer.decode(row.tolist())
        random = self.random(HELD_OUT_SEED, number)
        before, _, after = self._cut(text, random)
        return before + MIDDLE + after

    def scored(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        # padding stands at the end, where no token of a causal model sees it
        hidden = model.hidden(batch.input_ids)
        wanted = batch.targets != IGNORE_INDEX
        return hidden[wanted], batch.targets[wanted]

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        total, count = super().loss(model, batch)
        extra = model.extra_loss()
        return (total if extra is None else total + extra * count), count

    def words_loss(self, model: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        return chunked_cross_entropy(states, model.head_weight, targets)

    def flops_per_token(self, family: ModuleType, config: Any) -> float:
        return float(family.flops_per_token(config, self.seq_len))

    @property
    def density(self) -> float:
        return 1.0

    @property
    def rule(self) -> str:
        c = self.config
        return (
            f"separate windows of {self.room} tokens, of each document's part in a window "
            f"{c.fim_rate:.0%} rearranged at characters drawn with a fixed seed; every token "
            "scored, control tokens too"
        )
