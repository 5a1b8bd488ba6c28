"""Masked language modelling: say which words stood where some were hidden.

Devlin et al. 2019, section 3.1: 15 % of the tokens of a row are targets; of those, 80 % become
[MASK], 10 % some other word, and 10 % stay. Loss: −Σ ln p(x_t | corrupted row) over the targets
alone; no other word is scored. Which tokens are targets is drawn anew each time a row comes (Liu et
al. 2019, section 4.1). Options: whole words (github.com/google-research/bert), and a second
objective on pairs of texts, next sentences (Devlin et al. 2019) or their order (Lan et al. 2020,
section 3.1), whose mean loss is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from inkstone.config import Section
from inkstone.corpora.rows import Ids, Pieces, RowStream, Windows
from inkstone.corpora.shards import Corpus
from inkstone.errors import DataError, UsageError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._objective import HELD_OUT_SEED, in_batches
from inkstone.tasks._objective import Objective as Base
from inkstone.tokenizers.boundaries import Boundaries
from inkstone.tokenizers.roles import BERT, ROBERTA, Roles
from inkstone.tokenizers.tokenizer import Tokenizer

FAMILY = "bert"  # where the recipe names none
Others = Callable[[int, np.random.Generator], Ids]
"""(number of a row, random numbers) → a row of another document."""


class Config(Section):
    """Settings of masked language modelling.

    Attributes:
        share: Of the tokens of a row that are targets.
        masked: Share of the targets that become [MASK].
        replaced: Share of the targets that become some other word; the rest stays as it is.
        whole_words: Take all tokens of a word, or none.
        pairs: What is learned of two texts besides: whether the second follows the first
            ("next_sentence") or whether they are in their order ("sentence_order").
    """

    share: float = Field(default=0.15, gt=0, lt=1)
    masked: float = Field(default=0.8, ge=0, le=1)
    replaced: float = Field(default=0.1, ge=0, le=1)
    whole_words: bool = False
    pairs: Literal["none", "next_sentence", "sentence_order"] = "none"

    @model_validator(mode="after")
    def _shares_fit(self) -> Config:
        if self.masked + self.replaced > 1:
            raise ValueError("masked and replaced together are more than all targets")
        return self


@dataclass(frozen=True)
class MaskedBatch(TokenBatch):
    """Corrupted rows.

    Attributes:
        labels: [B] 0 where the second text follows the first, 1 where it does not (or both are
            swapped); None without pairs.
        weights: [B] of each label's loss: the targets of the whole step over its rows. Divided by
            the targets of the step, as every loss is, the sum becomes the mean over rows, however
            the step is split.
    """

    labels: Tensor | None = None
    weights: Tensor | None = None


def mask(
    row: Ids, random: np.random.Generator, config: Config, mask_id: int, boundaries: Boundaries
) -> tuple[Ids, Ids]:
    """Hide some words of a row.

    Args:
        row: [T] ids; control tokens among them are never hidden.
        random: Decides which.
        config: How many, and what becomes of them.
        mask_id: Of [MASK].
        boundaries: Of the vocabulary.

    Returns:
        What the model reads, and what it is to say: the word at a target, else IGNORE_INDEX.
    """
    inputs, targets = row.copy(), np.full_like(row, IGNORE_INDEX)
    candidates = np.flatnonzero(~boundaries.control[row])
    if not len(candidates):
        return inputs, targets
    wanted = max(1, round(config.share * len(candidates)))
    if config.whole_words:
        chosen = _whole_words(candidates, boundaries.word_starts(row), wanted, random)
    else:
        chosen = random.permutation(candidates)[:wanted]
    targets[chosen] = row[chosen]
    lot = random.random(len(chosen))
    inputs[chosen[lot < config.masked]] = mask_id
    other = chosen[(lot >= config.masked) & (lot < config.masked + config.replaced)]
    words = boundaries.words
    inputs[other] = words[random.integers(len(words), size=len(other))]
    return inputs, targets


def _whole_words(
    candidates: Ids, starts: npt.NDArray[np.bool_], wanted: int, random: np.random.Generator
) -> Ids:
    """Places of words in a random order, each taken where it still fits, as Google's code does."""
    words = np.split(candidates, np.flatnonzero(starts[candidates])[1:])
    chosen: list[Ids] = []
    room = wanted
    for number in random.permutation(len(words)):
        if len(words[number]) <= room:
            chosen.append(words[number])
            room -= len(words[number])
        if not room:
            break
    return np.concatenate(chosen) if chosen else candidates[:0]


def pair(
    row: Ids, kind: str, random: np.random.Generator, other: Callable[[], Ids]
) -> tuple[Ids, Ids, int]:
    """Two texts out of one, and whether that is what they still are.

    A "sentence" is any span (Devlin et al. 2019, section 3): the row is cut somewhere. In half of
    the cases the second part is replaced by as much of another document, or both are swapped.

    Args:
        row: [T] ids, two at least.
        kind: "next_sentence" or "sentence_order".
        random: Decides.
        other: A row of another document.

    Returns:
        The two texts, and the label: 0 as they were, 1 not.
    """
    cut = int(random.integers(1, len(row)))
    first, second = row[:cut], row[cut:]
    if random.random() < 0.5:
        return first, second, 0
    if kind == "sentence_order":
        return second, first, 1
    stranger = other()
    start = int(random.integers(0, max(1, len(stranger) - len(second) + 1)))
    return first, stranger[start : start + len(second)], 1


class Objective(Base):
    """Words in hidden places, and what two texts have to do with each other."""

    NAME = "masked_language_modeling"
    UNIT = "masked token"
    KINDS = ("encoder",)
    config: Config

    def __init__(self, config: Section, tokenizer: Tokenizer, seq_len: int) -> None:
        super().__init__(config, tokenizer, seq_len)
        mask_id = self.codec.mask_id
        if mask_id is None:
            raise UsageError("the tokenizer has no [MASK] token, so nothing can be hidden")
        self.mask_id = mask_id

    @staticmethod
    def tokenizer_kind(family: ModuleType) -> str:
        return str(getattr(family, "TOKENIZER", "wordpiece"))

    @staticmethod
    def roles(kind: str) -> Roles:
        return BERT if kind == "wordpiece" else ROBERTA

    def fields(self, family: ModuleType) -> dict[str, Any]:
        defaults = {name: field.default for name, field in family.Config.model_fields.items()}
        if self._paired and defaults.get("n_token_types", 0) < 2:
            raise UsageError(
                f"{family.__name__.rsplit('.', 1)[-1]} models know no second text, so task.pairs "
                "has nothing to learn by",
                fix="use model.family=bert, or leave task.pairs out",
            )
        head = "pretraining" if self._paired else "mlm"
        return {"head": head} | self.codec.model_fields(family.Config)

    @property
    def _paired(self) -> bool:
        return self.config.pairs != "none"

    # --- from text to batches --------------------------------------------------------------------

    @property
    def room(self) -> int:
        return self.seq_len - (3 if self._paired else 2)

    def stream(self, corpus: Corpus, *, tokens: int, seed: int) -> RowStream:
        rows, others = self._rows(corpus)
        frame = self.seq_len - self.room

        def collate(numbers: Sequence[int], content: Sequence[Ids]) -> MaskedBatch:
            return self.collate(
                numbers, content, seed, lambda number, random: others(stream.place(number), random)
            )

        stream = RowStream(rows, collate, tokens=tokens, frame=frame, seed=seed)
        return stream

    def held_out(self, corpus: Corpus, max_tokens: int | None = None) -> Iterator[MaskedBatch]:
        rows, others = self._rows(corpus)
        for numbers, content in in_batches(rows, max_tokens):
            yield self.collate(numbers, content, HELD_OUT_SEED, others)

    def _rows(self, corpus: Corpus) -> tuple[Windows | Pieces, Others]:
        if not self._paired:
            return Windows(corpus, self.room), lambda number, random: np.empty(0, np.int64)
        pieces = Pieces(corpus, self.room)
        if self.config.pairs == "next_sentence" and pieces.n_documents < 2:
            raise DataError(
                "all text is one document, and whether a text follows another one is learned "
                "from two",
                fix="give several files, cut them with text.split_on, or use "
                "task.pairs=sentence_order",
            )
        return pieces, pieces.other

    def collate(
        self, numbers: Sequence[int], rows: Sequence[Ids], seed: int, others: Others | None = None
    ) -> MaskedBatch:
        def neighbor(number: int, random: np.random.Generator) -> Ids:
            return rows[(number + 1) % len(rows)]

        made = [
            self._row(number, row, seed, others or neighbor)
            for number, row in zip(numbers, rows, strict=True)
        ]
        inputs, targets, types, labels = zip(*made, strict=True)
        input_ids, real = pad(inputs, self.codec.pad_id)
        wanted, _ = pad(targets, IGNORE_INDEX)
        attention_mask = None if bool(real.all()) else real
        if not self._paired:
            return MaskedBatch(input_ids, wanted, attention_mask)
        share = int((wanted != IGNORE_INDEX).sum()) / len(rows)
        return MaskedBatch(
            input_ids, wanted, attention_mask, pad(types, 0)[0],
            labels=torch.tensor(labels), weights=torch.full((len(rows),), share),
        )  # fmt: skip

    def _row(self, number: int, row: Ids, seed: int, others: Others) -> tuple[Any, ...]:
        """Inputs, targets, token types and label of a row."""
        random = self.random(seed, number)
        types, label = [0], 0
        if self._paired:
            first, second, label = pair(
                row, self.config.pairs, random, lambda: others(number, random)
            )
            framed, types = self.codec.two(first.tolist(), second.tolist())
        else:
            framed = self.codec.one(row.tolist())
        ids = np.array(framed, np.int64)
        return *mask(ids, random, self.config, self.mask_id, self.boundaries), types, label

    def hide(self, row: Ids, number: int) -> str:
        random = self.random(HELD_OUT_SEED, number)
        ids = row.copy()
        starts = self.boundaries.word_starts(row) & ~self.boundaries.control[row]
        alone = starts & np.append(starts[1:], True)  # words of one token
        places = np.flatnonzero(alone)
        if len(places):
            ids[random.choice(places)] = self.mask_id
        return self.shown(ids)

    # --- what the model does ---------------------------------------------------------------------

    def scored(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        return self._read(model, batch)[:2]

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        states, targets, order = self._read(model, batch)
        total, count = self.words_loss(model, states, targets)
        if order is not None:
            assert isinstance(batch, MaskedBatch)
            assert batch.labels is not None and batch.weights is not None
            each = F.cross_entropy(order.float(), batch.labels, reduction="none")
            total = total + (each * batch.weights).sum()
        return total, count

    def measure(self, model: Any, batch: TokenBatch) -> Counter[str]:
        states, targets, order = self._read(model, batch)
        sums = self.count(model, states, targets)
        if order is not None:
            assert isinstance(batch, MaskedBatch) and batch.labels is not None
            name = f"{self.config.pairs}_accuracy"
            sums[f"{name} right"] = int((order.argmax(-1) == batch.labels).sum())
            sums[f"{name} of"] = len(batch)
        return sums

    def _read(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor | None]:
        """States of the targets, the targets, and scores [B, 2] of the pairs."""
        x, packing = model.states(batch.input_ids, batch.attention_mask, batch.token_types)
        targets = packing.pack(batch.targets)
        hidden = targets != IGNORE_INDEX
        states = model.prediction_states(x[hidden])
        if not self._paired:
            return states, targets[hidden], None
        return states, targets[hidden], model.next_sentence(model.pooled(x, packing))

    @property
    def density(self) -> float:
        return self.config.share * self.room / self.seq_len

    def flops_per_token(self, family: ModuleType, config: Any) -> float:
        body = family.flops_per_token(config.model_copy(update={"head": "none"}), self.seq_len)
        words = family.flops_per_token(config, self.seq_len) - body
        return float(body + self.density * words)

    @property
    def rule(self) -> str:
        c = self.config
        rows = "rows of two texts" if self._paired else f"separate windows of {self.room} tokens"
        return (
            f"{rows}, each once; {c.share:.0%} of the tokens{' by whole words' * c.whole_words} "
            f"are targets, drawn with a fixed seed: {c.masked:.0%} masked, {c.replaced:.0%} "
            "replaced, the rest left as they are; perplexity is exp(nats per target)"
        )
