"""Summarization by writing: an encoder-decoder reads the text and writes what it comes to.

How it learns is told in `_rewriting`, how it is judged in `_summaries`. A text that is longer than
a row loses its end. While it writes, no three tokens are written twice in a row (Paulus et al.
2017, "A Deep Reinforced Model for Abstractive Summarization", section 2.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from inkstone.tasks import _rewriting, _summaries
from inkstone.tasks._summaries import Example, Summary

FAMILY = "transformer"  # where the recipe names none


class Config(_summaries.Config, _rewriting.Config):
    """Settings of a task that writes summaries; fields as in `_summaries` and `_rewriting`."""

    no_repeat_ngram: int = Field(default=3, ge=0, le=64)


class Task(_summaries.Summarizing, _rewriting.Rewriting[Example, Summary]):
    """Text to summary."""

    NAME: ClassVar = "summarization"
    config: Config

    def pair(self, example: Example) -> tuple[str, str]:
        """With a space before the first word, which then has the ids that it has elsewhere."""
        return f" {example.text}", f" {''.join(example.summaries[:1])}"

    def predict(self, example: Example, outputs: Sequence[Any]) -> Summary:
        ids, score = outputs[0]
        return Summary(self.tokenizer.decode(ids).strip(), score)
