"""Answers to questions out of a folder of documents: look passages up, read them, cite.

Retrieve and read, as Chen et al. 2017 ("Reading Wikipedia to Answer Open-Domain Questions"): an
index finds passages by words, and by meaning where it has an encoder (`inference.index`), the model
looks for an answer in each, and the passages compete by how far the best span of each is above "not
here", which is comparable between texts (Clark and Gardner 2018, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inkstone.inference.index import Index, Passage
from inkstone.inference.predict import Predictor
from inkstone.tasks.question_answering import Answer, Example
from inkstone.text.normalize import normalize

READ = 10  # passages that are read for a question


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """An answer and the passage that it stands in.

    Attributes:
        answer: With its place in the passage's text.
        passage: Where it was found.
    """

    answer: Answer
    passage: Passage

    def __str__(self) -> str:
        return f"{self.answer.text}  [{self.passage.place}]"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {**self.answer.to_dict(), "source": self.passage.source,
                "line": self.passage.line, "record": self.passage.record,
                "text": self.passage.text}  # fmt: skip


def answer_from(
    predictor: Predictor[Any, Any], index: Index, question: str, *, top: int = 1
) -> list[CitedAnswer]:
    """The best answers that some documents hold, best first, each from another passage.

    Args:
        predictor: Of a model that was trained for question answering.
        index: Of the documents.
        question: In words.
        top: How many answers at most.

    Returns:
        Fewer, or none, where no passage is found, or where the model was
        trained on questions without an answer and finds none.
    """
    found = index.search(question, READ)
    examples = [Example(question, normalize(passage.text)) for passage in found]
    answers: Sequence[Answer] = [answer for _, answer in predictor(examples)]
    cited = [
        CitedAnswer(answer, passage)
        for answer, passage in zip(answers, found, strict=True)
        if answer.text
    ]
    return sorted(cited, key=lambda one: -one.answer.margin)[:top]
