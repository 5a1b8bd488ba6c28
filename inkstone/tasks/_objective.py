"""The contract of an objective on plain text: rows of tokens that make their own targets.

A file of this room that holds an `Objective` says which kinds of model learn by it and with which
head, how rows become a corrupted batch, its loss, and what is counted on held-out text. What is
drawn at random for a row depends on the seed and the row's number alone, so that a resumed run sees
the same batches.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from inkstone.config import Section
from inkstone.corpora.rows import Ids, Pieces, RowStream, Windows
from inkstone.corpora.shards import Corpus
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import MARK, Codec
from inkstone.tokenizers.boundaries import Boundaries
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import Tokenizer

HELD_OUT_SEED = 1 << 62  # training cannot have it: what is held out is corrupted alike in every run
ROWS_AT_ONCE = 32  # of held-out text
SCORED_AT_ONCE = 2048  # targets


@dataclass(frozen=True)
class ObjectiveReport:
    """What was counted on held-out text.

    Attributes:
        nats: −Σ ln p(target).
        targets: How many there were.
        right: Targets that were the likeliest word.
        parts: Further shares, by name: how many were right, and of how many.
    """

    nats: float
    targets: int
    right: int
    parts: Mapping[str, tuple[int, int]]

    @property
    def nats_per_token(self) -> float:
        """Mean loss of a target."""
        return self.nats / max(1, self.targets)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a target; of masked words it is a pseudo-perplexity."""
        return math.exp(min(700.0, self.nats_per_token))

    @property
    def accuracy(self) -> float:
        """Share of targets that were the likeliest word."""
        return self.right / max(1, self.targets)

    def to_dict(self) -> dict[str, float]:
        """Scores by name."""
        shares = {name: right / max(1, of) for name, (right, of) in self.parts.items()}
        return {
            "nats_per_token": self.nats_per_token, "perplexity": self.perplexity,
            "accuracy": self.accuracy, **shares,
        }  # fmt: skip


class Objective(ABC):
    """What a model learns from plain text.

    Args:
        config: The objective's own settings.
        tokenizer: Trained with `roles`.
        seq_len: Tokens of a row at most, control tokens included.
    """

    NAME: ClassVar[str]
    UNIT: ClassVar[str]  # what one target of the loss is
    KINDS: ClassVar[tuple[str, ...]]  # of model
    config: Any

    def __init__(self, config: Section, tokenizer: Tokenizer, seq_len: int) -> None:
        self.config, self.tokenizer, self.seq_len = config, tokenizer, seq_len
        self.codec = Codec(tokenizer, seq_len)
        self.boundaries = Boundaries(tokenizer)

    # --- before there is a tokenizer -------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def tokenizer_kind(family: ModuleType) -> str:
        """The kind of tokenizer that is trained where the recipe names none."""

    @staticmethod
    @abstractmethod
    def roles(kind: str) -> Roles:
        """Control tokens of a tokenizer of that kind."""

    @abstractmethod
    def fields(self, family: ModuleType) -> dict[str, Any]:
        """What the model's `Config` must hold.

        Raises:
            UsageError: The family has not what the objective needs.
        """

    # --- from text to batches --------------------------------------------------------------------

    @abstractmethod
    def stream(self, corpus: Corpus, *, tokens: int, seed: int) -> RowStream:
        """Endless batches of `tokens` tokens to train on."""

    @abstractmethod
    def held_out(self, corpus: Corpus, max_tokens: int | None = None) -> Iterator[TokenBatch]:
        """Held-out text once, in order, always corrupted alike."""

    @abstractmethod
    def collate(self, numbers: Sequence[int], rows: Sequence[Ids], seed: int) -> TokenBatch:
        """Rows, corrupted as (seed, number) says, as a batch."""

    @property
    @abstractmethod
    def room(self) -> int:
        """Tokens of text that fit a row."""

    @abstractmethod
    def hide(self, row: Ids, number: int) -> str:
        """A text with something hidden, marked as a user would mark it: an example for people."""

    @property
    @abstractmethod
    def rule(self) -> str:
        """How held-out scores are computed, in words."""

    def shown(self, ids: Ids) -> str:
        """Text with marks in it, as a user would write it."""
        text = self.tokenizer.decode(ids.tolist(), skip_special=False)
        return re.sub(rf"(?<=\S)(?={MARK.pattern})", " ", text).strip()

    def random(self, seed: int, number: int) -> np.random.Generator:
        """What decides about row `number`: the same numbers at any time."""
        return np.random.Generator(np.random.Philox(key=[seed, number]))

    def example(self, rows: int) -> TokenBatch:
        """Random text of full rows, to time a step with."""
        words = self.boundaries.words
        drawn = self.random(0, 0).integers(len(words), size=(rows, self.room))
        return self.collate(range(rows), list(words[drawn]), 0)

    # --- what the model does ---------------------------------------------------------------------

    @abstractmethod
    def scored(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """States that words are scored from, [N, D], and the right words, [N]; targets only."""

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        """Summed loss in nats (fp32 scalar with a graph) and how many targets it is of."""
        return self.words_loss(model, *self.scored(model, batch))

    def words_loss(self, model: Any, states: Tensor, targets: Tensor) -> tuple[Tensor, int]:
        """Summed loss of the right words, and how many there are."""
        return chunked_cross_entropy(states, model.head_weight, targets, bias=model.head_bias)

    def measure(self, model: Any, batch: TokenBatch) -> Counter[str]:
        """Sums over a batch: nats, targets, right; and "NAME right" with "NAME of" of a part."""
        return self.count(model, *self.scored(model, batch))

    def count(self, model: Any, states: Tensor, targets: Tensor) -> Counter[str]:
        """Nats, targets and right ones of states that words are scored from."""
        nats, n = self.words_loss(model, states, targets)
        right = 0
        for start in range(0, len(states), SCORED_AT_ONCE):
            part = slice(start, start + SCORED_AT_ONCE)
            right += int((model.logits(states[part]).argmax(-1) == targets[part]).sum())
        return Counter({"nats": float(nats), "targets": n, "right": right})  # type: ignore[dict-item]

    @torch.no_grad()
    def evaluate(self, model: Any, batches: Iterable[TokenBatch]) -> ObjectiveReport:
        """Count over batches in evaluation mode; the model's training mode is restored."""
        was_training = model.training
        model.eval()
        sums: Counter[str] = Counter()
        try:
            for batch in batches:
                sums.update(self.measure(model, batch.to(model.device)))
        finally:
            model.train(was_training)
        parts = {
            name.removesuffix(" right"): (int(value), int(sums[name.replace(" right", " of")]))
            for name, value in sums.items()
            if name.endswith(" right")
        }
        return ObjectiveReport(float(sums["nats"]), int(sums["targets"]), int(sums["right"]), parts)

    @abstractmethod
    def flops_per_token(self, family: ModuleType, config: Any) -> float:
        """Operations of a forward pass, shared out over the `seq_len` tokens of a row."""

    @property
    @abstractmethod
    def density(self) -> float:
        """Targets for each token of a row, on average."""


def in_batches(
    rows: Windows | Pieces, max_tokens: int | None
) -> Iterator[tuple[list[int], list[Ids]]]:
    """Numbers and rows of a corpus in order, some at a time, up to about `max_tokens` tokens."""
    room = 1 << 62 if max_tokens is None else max_tokens
    held: list[Ids] = []
    first = 0
    for number, row in enumerate(rows.in_order()):
        held.append(row)
        room -= len(row)
        if len(held) == ROWS_AT_ONCE or room <= 0:
            yield list(range(first, number + 1)), held
            held, first = [], number + 1
        if room <= 0:
            return
    if held:
        yield list(range(first, first + len(held))), held
