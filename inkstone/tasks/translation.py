"""Translation, and any other rewriting of one text into another, by an encoder-decoder.

The decoder reads the start token and the target shifted by one; the loss is −log p of each target
token and of the end, summed, with label smoothing (Vaswani et al. 2017, section 5.4). Source and
target share one vocabulary (section 5.1). Judged by BLEU and chrF as sacrebleu counts them; the
best checkpoint is the one with the lowest held-out loss, without smoothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from inkstone import registry
from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec, cut
from inkstone.text.normalize import normalize
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer

Decode = Callable[[Any, TokenBatch], list[tuple[list[int], float]]]
"""(model, batch) → the ids that the decoder writes for each row, and their score."""

FAMILY = "transformer"  # where the recipe names none


class Config(Section):
    """Settings of a translation task.

    Attributes:
        source_field: Field of the text to translate.
        target_field: Field of its translation.
        label_smoothing: ε: the share of probability that all other words are to have.
        n_beams: Texts that a search keeps side by side; 1 takes the likeliest word each time.
        length_penalty: α of the search: above 0 it favors longer texts.
        bleu_tokenizer: How sacrebleu cuts words: "13a" (its default) or "zh" for Chinese targets.
    """

    source_field: str = Field(default="source", min_length=1)
    target_field: str = Field(default="target", min_length=1)
    label_smoothing: float = Field(default=0.1, ge=0, lt=1)
    n_beams: int = Field(default=4, ge=1, le=64)
    length_penalty: float = Field(default=1.0, ge=-10, le=10)
    bleu_tokenizer: str = Field(default="13a", pattern="^(13a|zh|intl|char|none)$")


@dataclass(frozen=True, slots=True)
class Example:
    """A text and its translation ("" where it is to be found)."""

    source: str
    target: str = ""


@dataclass(frozen=True, slots=True)
class Translation:
    """What was written.

    Attributes:
        text: The translation.
        score: Its log-probability over length^α, in nats.
    """

    text: str
    score: float

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"translation": self.text, "score": self.score}


class Task(_base.Task[Example, Translation]):
    """Text to text.

    `decode` and `tokenizer` are set by whoever predicts: a task knows no search.
    """

    NAME = "translation"
    UNIT = "token"
    HEADS: ClassVar = {"seq2seq": ""}
    FIELDS = ("source_field", "target_field")
    LENGTHS = ("target", "source")
    config: Config
    decode: Decode
    tokenizer: Tokenizer

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        source = self.text(record, "source_field")
        if not labelled:
            return Example(source)
        target = self.text(record, "target_field")
        if not source.strip() or not target.strip():
            raise DataError(
                f"{record.place}: an empty {'source' if target.strip() else 'target'}",
                fix='remove the line, or skip such lines with text.on_error="skip"',
            )
        return Example(source, target)

    def example(self, text: str) -> Example:
        return Example(normalize(text))

    def texts(self, example: Example) -> Iterable[str]:
        return example.source, example.target

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        encode, end = codec.tokenizer.encode_batch, codec.tokenizer.eos_id
        room = codec.max_length - 1
        sources = encode([example.source for example in examples])
        targets = encode([example.target for example in examples])
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
        return chunked_cross_entropy(
            hidden, model.head_weight, batch.targets, bias=model.head_bias,
            label_smoothing=smoothing,
        )  # fmt: skip

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        return self.decode(model, batch)

    def predict(self, example: Example, outputs: Sequence[Any]) -> Translation:
        ids, score = outputs[0]
        return Translation(self.tokenizer.decode(ids).strip(), score)

    @property
    def metrics(self) -> tuple[str, ...]:
        return "bleu", "chrf"

    def given(self, example: Example) -> Any:
        return example.target

    def found(self, prediction: Translation) -> Any:
        return prediction.text

    def simplest(self, examples: Sequence[Example]) -> tuple[str, list[Any]]:
        return "the source, unchanged", [example.source for example in examples]

    def mistake(self, example: Example, prediction: Translation) -> Mistake | None:
        if prediction.text == example.target:
            return None
        sacrebleu = registry.extra("sacrebleu", "eval")
        score = sacrebleu.sentence_chrf(prediction.text, [example.target]).score
        found = f"{prediction.text} (chrF {score:.0f})"
        return Mistake(-score, example.source, example.target, found)


START = -1  # stands for the start token of the model, which a task does not know before
