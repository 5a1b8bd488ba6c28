"""Translation, and any other rewriting of one text into another, by an encoder-decoder.

How it learns and writes is told in `_rewriting`. Judged by BLEU and chrF as sacrebleu counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from inkstone import registry
from inkstone.errors import DataError
from inkstone.tasks import _rewriting
from inkstone.tasks._base import Mistake
from inkstone.tasks._codec import Codec
from inkstone.text import sentences
from inkstone.text.normalize import normalize
from inkstone.text.table import Record

FAMILY = "transformer"  # where the recipe names none


class Config(_rewriting.Config):
    """Settings of a translation task.

    Attributes:
        source_field: Field of the text to translate.
        target_field: Field of its translation.
        bleu_tokenizer: How sacrebleu cuts words: "13a" (its default) or "zh" for Chinese targets.
        mode: What is translated at once. "sentence": the whole text, which loses its end where it
            is too long. "document": each sentence, lines and paragraphs staying as they are.
            "auto": the whole text where it fits a row; else each line, and each sentence of a line
            that is too long itself.
    """

    source_field: str = Field(default="source", min_length=1)
    target_field: str = Field(default="target", min_length=1)
    bleu_tokenizer: str = Field(default="13a", pattern="^(13a|zh|intl|char|none)$")
    mode: Literal["auto", "sentence", "document"] = "auto"


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


class Task(_rewriting.Rewriting[Example, Translation]):
    """Text to text."""

    NAME = "translation"
    FIELDS = ("source_field", "target_field")
    config: Config

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
        return self.pair(example)

    def pair(self, example: Example) -> tuple[str, str]:
        return example.source, example.target

    def parts(self, example: Example, codec: Codec) -> list[Example]:
        if self.config.mode == "sentence" or self._whole(example.source, codec):
            return [example]
        found = [
            piece.strip()
            for line in example.source.splitlines()
            for piece in ([line] if self._whole(line, codec) else sentences.split(line))
        ]
        return [Example(piece) for piece in found if piece] or [example]

    def _whole(self, text: str, codec: Codec) -> bool:
        if self.config.mode == "document":
            return False
        room = codec.max_length - 1
        return len(text.encode()) <= room or len(codec.tokenizer.encode(text)) <= room

    def predict(self, example: Example, outputs: Sequence[Any]) -> Translation:
        ids, score = outputs[0]
        return Translation(self.tokenizer.decode(ids).strip(), score)

    def join(
        self, example: Example, parts: Sequence[Example], predictions: Sequence[Translation]
    ) -> Translation:
        """Lines and paragraphs as they were; a space between sentences where the marks have one."""
        written, place = "", 0
        for part, translation in zip(parts, predictions, strict=True):
            start = example.source.index(part.source, place)
            gap = example.source[place:start]
            if written and "\n" not in gap:
                gap = "" if written.endswith(sentences.UNSPACED) else " "
            written += gap + translation.text if written else translation.text
            place = start + len(part.source)
        scores = [translation.score for translation in predictions]
        return Translation(written, sum(scores) / len(scores))

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
