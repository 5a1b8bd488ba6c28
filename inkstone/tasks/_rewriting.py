"""What tasks of one text into another have in common: an encoder-decoder that reads and writes.

The decoder reads the start token and the target shifted by one; the loss is −log p of each target
token and of the end, summed, with label smoothing (Vaswani et al. 2017, section 5.4). Source and
target share one vocabulary (section 5.1). The best checkpoint is the one with the lowest held-out
loss, without smoothing.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import _base
from inkstone.tasks._base import Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec, cut
from inkstone.tokenizers.tokenizer import Tokenizer

Decode = Callable[[Any, TokenBatch], list[tuple[list[int], float]]]
"""(model, batch) → the ids that the decoder writes for each row, and their score."""
START = -1  # stands for the start token of the model, which a task does not know before
E = TypeVar("E")
P = TypeVar("P")


class Config(Section):
    """How such a task learns and writes.

    Attributes:
        label_smoothing: ε: the share of probability that all other words are to have.
        n_beams: Texts that a search keeps side by side; 1 takes the likeliest word each time.
        length_penalty: α of the search: above 0 it favors longer texts.
        no_repeat_ngram: No run of so many tokens is written twice in a text (Paulus et al. 2017,
            section 2.5); 0: any may be.
    """

    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    n_beams: int = Field(default=4, ge=1, le=64)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    no_repeat_ngram: int = Field(default=0, ge=0, le=64)


class Rewriting(_base.Task[E, P]):
    """One text into another.

    `decode` and `tokenizer` are set by whoever predicts: a task knows no search.
    """

    UNIT = "token"
    EPOCHS = (24, 8)
    HEADS: ClassVar = {"seq2seq": ""}
    LENGTHS = ("target", "source")
    config: Config
    decode: Decode
    tokenizer: Tokenizer

    @abstractmethod
    def pair(self, example: E) -> tuple[str, str]:
        """What is read, and what is to be written ("" where it is to be found)."""

    def encode(self, examples: Sequence[E], codec: Codec) -> list[list[Row]]:
        encode, end = codec.tokenizer.encode_batch, codec.tokenizer.eos_id
        room = codec.max_length - 1
        pairs = [self.pair(example) for example in examples]
        sources = encode([source for source, _ in pairs])
        targets = encode([target for _, target in pairs])
        return [
            [{"source": [*cut(s, room, "end"), end], "target": [*cut(t, room, "end"), end]}]
            for s, t in zip(sources, targets, strict=True)
        ]

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        source_ids, source_mask = pad([row["source"] for row in rows], pad_id)
        targets, mask = pad([row["target"] for row in rows], IGNORE_INDEX)
        shifted = targets.roll(1, 1).clamp_min(0)
        shifted[:, 0] = START  # the model's own start token, once it is known
        return TokenBatch(shifted, targets, mask, source_ids=source_ids, source_mask=source_mask)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        return self._loss(model, batch, self.config.label_smoothing)

    def held_out_loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        """The loss without smoothing: nats that are comparable between settings."""
        return self._loss(model, batch, 0.0)

    def _loss(self, model: Any, batch: TokenBatch, smoothing: float) -> tuple[Tensor, int]:
        memory = model.encode(batch.source_ids, source_mask=batch.source_mask)
        input_ids = batch.input_ids.masked_fill(batch.input_ids == START, model.config.start_id)
        hidden = model.hidden(input_ids, memory, attention_mask=batch.attention_mask)
        found: tuple[Tensor, int] = model.loss(
            hidden, memory, batch.targets, label_smoothing=smoothing
        )
        return found

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        return self.decode(model, batch)
