"""Scores of labels and of labeled spans, each with the definition that makes it comparable.

Per label, with tp, fp and fn its true positives, false positives and false negatives:

    precision = tp / (tp + fp),   recall = tp / (tp + fn),   F1 = 2 tp / (2 tp + fp + fn)

and 0 where the denominator is 0. "micro" adds the counts of all labels up first, "macro" takes the
unweighted mean of each figure over the labels (so its F1 is a mean of F1s, not of the two means).

Spans are scored as the shared tasks' own script conlleval scores them (Tjong Kim Sang and Buchholz,
"Introduction to the CoNLL-2000 Shared Task: Chunking", section 4): a span is right when its first
token, its last token and its type are, and counts are summed over all spans of all sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

from inkstone.errors import DataError, UsageError

Average = Literal["macro", "micro", "binary"]


class F1(NamedTuple):
    """Precision, recall and F1, each from 0 to 1."""

    precision: float
    recall: float
    f1: float


class Span(NamedTuple):
    """Tokens `start` up to, not including, `end` of a sentence, with a type ("PER")."""

    start: int
    end: int
    type: str


def accuracy(predicted: Sequence[Hashable], expected: Sequence[Hashable]) -> float:
    """Share of equal pairs.

    Raises:
        DataError: Nothing to score, or unequal lengths.
    """
    _check(predicted, expected, "labels")
    return sum(p == e for p, e in zip(predicted, expected, strict=True)) / len(expected)


def f1(
    predicted: Sequence[Hashable],
    expected: Sequence[Hashable],
    average: Average = "macro",
    *,
    positive: Hashable = 1,
) -> F1:
    """Precision, recall and F1 over all labels that occur in either sequence.

    Args:
        predicted: One label an example.
        expected: The right ones.
        average: "macro" and "micro" as at the head of this file; "binary" scores one label.
        positive: That label.

    Raises:
        DataError: Nothing to score, or unequal lengths.
        UsageError: Unknown average.
    """
    _check(predicted, expected, "labels")
    right = Counter(p for p, e in zip(predicted, expected, strict=True) if p == e)
    found, wanted = Counter(predicted), Counter(expected)
    if average == "binary":
        return _from_counts(right[positive], found[positive], wanted[positive])
    if average == "micro":
        return _from_counts(right.total(), found.total(), wanted.total())
    if average != "macro":
        raise UsageError(f"unknown average {average!r}", fix="known: macro, micro, binary")
    labels = found.keys() | wanted.keys()
    rows = [_from_counts(right[x], found[x], wanted[x]) for x in labels]
    return F1(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def span_f1(predicted_tags: Sequence[Sequence[str]], expected_tags: Sequence[Sequence[str]]) -> F1:
    """Micro precision, recall and F1 of typed spans, as conlleval computes them.

    Args:
        predicted_tags: Sentences of tags, read by `spans`.
        expected_tags: The right ones, of the same lengths.

    Raises:
        DataError: Nothing to score, unequal lengths, or a tag that is none.
    """
    return _from_counts(*(count.total() for count in _count_spans(predicted_tags, expected_tags)))


def span_f1_by_type(
    predicted_tags: Sequence[Sequence[str]], expected_tags: Sequence[Sequence[str]]
) -> dict[str, F1]:
    """`span_f1` of each type of span, in alphabetical order."""
    right, found, wanted = _count_spans(predicted_tags, expected_tags)
    types = sorted(found.keys() | wanted.keys())
    return {x: _from_counts(right[x], found[x], wanted[x]) for x in types}


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans of one sentence, in order.

    Reads IOB1 (B only between neighbors of one type), IOB2 (B at each start) and IOBES/BILOU
    alike. Tags that fit no scheme are read as conlleval reads them: I after O, or after another
    type, starts a span.

    Args:
        tags: "O", or a letter of B, I, E, S, L, U, and where types are told apart "-TYPE".

    Raises:
        DataError: A tag with another letter.
    """
    found: list[Span] = []
    start, type_, previous = 0, "", "O"
    for place, tag in enumerate([*tags, "O"]):
        letter, _, kind = tag.partition("-")
        if letter not in LETTERS:
            raise DataError(
                f"{tag!r} is no tag of a span", fix="tags are O, B-TYPE, I-TYPE, E-TYPE or S-TYPE"
            )
        letter = LETTERS[letter]
        if letter == "O" and kind:
            raise DataError(f"{tag!r} is no tag of a span: O has no type")
        fresh = letter in "BS" or previous in "OES" or kind != type_
        if previous != "O" and (letter == "O" or fresh):
            found.append(Span(start, place, type_))
        if letter != "O" and fresh:
            start, type_ = place, kind
        previous = letter
    return found


LETTERS = {"O": "O", "B": "B", "I": "I", "E": "E", "L": "E", "S": "S", "U": "S"}


def _count_spans(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Right, found and wanted spans by type."""
    _check(predicted, expected, "sentences")
    right, found, wanted = Counter[str](), Counter[str](), Counter[str]()
    for number, (ours, theirs) in enumerate(zip(predicted, expected, strict=True)):
        if len(ours) != len(theirs):
            raise DataError(f"sentence {number}: {len(ours)} tags predicted of {len(theirs)}")
        have, want = set(spans(ours)), set(spans(theirs))
        right.update(x.type for x in have & want)
        found.update(x.type for x in have)
        wanted.update(x.type for x in want)
    return right, found, wanted


def _from_counts(right: int, found: int, wanted: int) -> F1:
    return F1(
        right / found if found else 0.0,
        right / wanted if wanted else 0.0,
        2 * right / (found + wanted) if found + wanted else 0.0,
    )


def _check(predicted: Sequence[object], expected: Sequence[object], what: str) -> None:
    if len(predicted) != len(expected):
        raise DataError(f"{len(predicted)} {what} predicted, but {len(expected)} expected")
    if not len(expected):
        raise DataError(f"there are no {what} to score")
