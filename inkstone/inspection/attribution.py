"""Which words a label is due to: the text is read again without each of them.

    weight of a word = ln(p / (1 − p)) of the label with the word, less the same without it

(erasure: Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation
Erasure", section 3, in log-odds). Above 0 a word speaks for the label, below 0 against it.

Why not gradients: erasure asks the model itself a question that anybody understands, it is the same
for networks, recurrent or not, and for bags of words, it needs no baseline to compare with and no
access to an embedding, and where a model is linear it is exact: of two labels, with features
that are counted and not rescaled, the weight of a word is the sum over its features of weight ×
count (a test holds it against `bag_of_words.Model`'s own). What it cannot see is a pair of words
that say the same: without either, the other one still says it.

A text of n words is read n + 1 times, in one batch; above `MOST_PARTS` neighbors share a reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inkstone.errors import UsageError
from inkstone.inference.predict import Predictor
from inkstone.tasks import classification
from inkstone.tasks.tagging import WORD

MOST_PARTS = 128  # readings of one text, beside that of the whole
LEAST = 1e-30  # a probability nearer to 0, of the label or of all others, counts as this


@dataclass(frozen=True, slots=True)
class Word:
    """A word, or a run of neighbors in a long text, and what it says.

    Attributes:
        text: As it stands.
        start: Its first character in the text.
        end: The character behind its last.
        weight: Log-odds of the label that are due to it, in nats.
    """

    text: str
    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """A label and what it is due to.

    Attributes:
        text: As the model reads it (normalized).
        label: The label in question.
        score: Its probability.
        words: In order; what stands between them was always left in.
    """

    text: str
    label: str
    score: float
    words: tuple[Word, ...]


def attribute(
    predictor: Predictor[Any, Any],
    text: str,
    label: str | None = None,
    *,
    most: int = MOST_PARTS,
) -> Attribution:
    """What the words of a text say for or against a label.

    Args:
        predictor: Of a model that classifies, of any family.
        text: Any.
        label: In question; None takes the one that the model gives.
        most: Times that a part is left out, at most.

    Raises:
        UsageError: The model has another task, or no such label.
    """
    if predictor.task.NAME != classification.Task.NAME:
        raise UsageError("only the labels of a classifier can be explained by its words")
    whole = predictor.task.example(text)
    spans = _spans(whole.text, most)
    examples = [whole]
    examples += [classification.Example(_without(whole.text, *span)) for span in spans]
    found = [prediction for _, prediction in predictor(examples)]
    wanted = found[0].label if label is None else label
    if wanted not in found[0].scores:
        known = ", ".join(sorted(found[0].scores)[:20])
        raise UsageError(f"there is no label {wanted[:100]!r}", fix=f"known: {known}")
    several = predictor.task.config.multi_label  # each label is a yes or no of its own
    odds = [_log_odds(one.scores, wanted, several) for one in found]
    words = tuple(
        Word(whole.text[start:end], start, end, odds[0] - without)
        for (start, end), without in zip(spans, odds[1:], strict=True)
    )
    return Attribution(whole.text, wanted, found[0].scores[wanted], words)


def _spans(text: str, most: int) -> Sequence[tuple[int, int]]:
    """Where the words begin and end; in a long text, as many to a span as keep within `most`."""
    words = [match.span() for match in WORD.finditer(text)]
    each = max(1, math.ceil(len(words) / most))
    runs = [words[i : i + each] for i in range(0, len(words), each)]
    return [(run[0][0], run[-1][1]) for run in runs]


def _without(text: str, start: int, end: int) -> str:
    """The text without a span, and without one of the two blanks around it."""
    before, after = text[:start], text[end:]
    if before[-1:] in ("", " ") and after[:1] == " ":
        after = after[1:]
    elif before[-1:] == " " and not after:
        before = before[:-1]
    return before + after


def _log_odds(scores: Mapping[str, float], label: str, several: bool) -> float:
    """ln(p / (1 − p)); 1 − p as the sum of the others, which is exact where p is nearly 1."""
    p = scores[label]
    rest = 1 - p if several else sum(q for name, q in scores.items() if name != label)
    return math.log(max(p, LEAST)) - math.log(max(rest, LEAST))
