"""Translation, and any other rewriting of one text into another, by an encoder-decoder.

How it learns and writes is told in `_rewriting`. Judged by BLEU and chrF as sacrebleu counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from inkstone import registry
from inkstone.errors import DataError
from inkstone.tasks import _rewriting
from inkstone.tasks._base import Mistake
from inkstone.text.normalize import normalize
from inkstone.text.table import Record

FAMILY = "transformer"  # where the recipe names none


class Config(_rewriting.Config):
    """Settings of a translation task.

    Attributes:
        source_field: Field of the text to translate.
        target_field: Field of its translation.
        bleu_tokenizer: How sacrebleu cuts words: "13a" (its default) or "zh" for Chinese targets.
    """

    source_field: str = Field(default="source", min_length=1)
    target_field: str = Field(default="target", min_length=1)
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
