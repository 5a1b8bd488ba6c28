"""What both ways of summarizing have in common: the text and its sentences, scores, the baseline.

Judged by ROUGE (`text.rouge`), beside the first sentences of each text, which of news and of
abstracts are hard to beat (Nenkova 2005; See et al. 2017, section 7.1).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake
from inkstone.text import rouge, sentences
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value
from inkstone.text.table import Record


class Config(Section):
    """Where text and summary stand.

    Attributes:
        text_field: Field of the text: a string, or a list of its sentences.
        summary_field: Field of its summary: a string, or a list of several summaries, each of which
            is right. Training reads the first, scores count the best.
        lead_sentences: Sentences of the baseline.
    """

    text_field: str = Field(default="text", min_length=1)
    summary_field: str = Field(default="summary", min_length=1)
    lead_sentences: int = Field(default=3, ge=1, le=1000)


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what is to be said of it.

    Attributes:
        sentences: With the white space behind them: together they are the text.
        summaries: Each of them right; () where one is to be found.
    """

    sentences: tuple[str, ...]
    summaries: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The whole text."""
        return "".join(self.sentences)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a text was summed up as.

    Attributes:
        text: The summary.
        score: Where it was written, its log-probability over length^α, in nats; where sentences
            were chosen, their mean probability of belonging to a summary.
        places: Numbers of the chosen sentences, from 0; () where it was written.
    """

    text: str
    score: float
    places: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"summary": self.text, "score": self.score, "places": list(self.places)}


class Summarizing(_base.Task[Example, Summary]):
    """Reading and judging; a task says how a summary is found."""

    FIELDS = ("text_field", "summary_field")
    config: Any

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        value = self.need(record, "text_field")
        if isinstance(value, list):
            given = self._listed(record, "text_field", value)
            found = tuple(s if s.endswith(sentences.UNSPACED) else f"{s} " for s in given)
        else:
            found = sentences.split(self.text(record, "text_field"))
        if not "".join(found).strip():
            raise _empty(record, "text")
        return Example(found, self._summaries(record) if labelled else ())

    def _summaries(self, record: Record) -> tuple[str, ...]:
        value = self.need(record, "summary_field")
        given = value if isinstance(value, list) else [self.text(record, "summary_field")]
        found = tuple(self._listed(record, "summary_field", given))
        if not found:
            raise _empty(record, "summary")
        return found

    def _listed(self, record: Record, setting: str, value: Sequence[Any]) -> list[str]:
        """The texts of a list that are not empty."""
        wrong = [kind_of_value(x) for x in value if not isinstance(x, str)]
        if wrong:
            raise DataError(
                f"{record.place}: the list in field {getattr(self.config, setting)!r} holds "
                f"{wrong[0]}, not texts only",
                fix="write a text, or a list of texts",
            )
        return [text for x in value if (text := normalize(x).strip())]

    def example(self, text: str) -> Example:
        return Example(sentences.split(normalize(text)))

    def texts(self, example: Example) -> Iterable[str]:
        return (example.text, *example.summaries[:1])

    @property
    def metrics(self) -> tuple[str, ...]:
        return "rougeL", "rouge1", "rouge2"

    def given(self, example: Example) -> Any:
        return example.summaries

    def found(self, prediction: Summary) -> Any:
        return (prediction.text,)  # as `given` has it: a list of texts

    def simplest(self, examples: Sequence[Example]) -> tuple[str, list[Any]]:
        n = self.config.lead_sentences
        name = "the first sentence" if n == 1 else f"the first {n} sentences"
        return name, [("".join(example.sentences[:n]).strip(),) for example in examples]

    def mistake(self, example: Example, prediction: Summary) -> Mistake | None:
        score = rouge.best("rougeL", prediction.text, example.summaries)
        if score == 1.0:
            return None
        found = f"{prediction.text} (ROUGE-L {100 * score:.0f})"
        return Mistake(-score, example.text, " ‖ ".join(example.summaries), found)


def _empty(record: Record, what: str) -> DataError:
    return DataError(
        f"{record.place}: an empty {what}",
        fix='remove the line, or skip such lines with text.on_error="skip"',
    )
