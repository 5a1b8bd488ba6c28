"""Metrics beside scikit-learn, conlleval's rules and hand-counted cases."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import DataError, UsageError
from inkstone.evaluation.metrics import (
    F1,
    Span,
    accuracy,
    f1,
    span_f1,
    span_f1_by_type,
    spans,
)

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)
TAG = st.sampled_from(["O", *(f"{x}-{t}" for x in "BI" for t in ("PER", "LOC"))])
SENTENCES = st.lists(st.lists(st.tuples(TAG, TAG), max_size=12), min_size=1, max_size=4)


@settings(deadline=None)  # the first call imports
@given(PAIRS)
def test_labels_score_as_scikit_learn_scores_them(pairs: list[tuple[int, int]]) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    predicted, expected = map(list, zip(*pairs, strict=True))
    assert accuracy(predicted, expected) == pytest.approx(
        sklearn.accuracy_score(expected, predicted)
    )
    for average in ("macro", "micro"):
        theirs = sklearn.precision_recall_fscore_support(
            expected, predicted, average=average, zero_division=0
        )[:3]
        assert f1(predicted, expected, average) == pytest.approx(theirs)  # type: ignore[arg-type]
    theirs = sklearn.precision_recall_fscore_support(
        [x == 2 for x in expected], [x == 2 for x in predicted], average="binary", zero_division=0
    )[:3]
    assert f1(predicted, expected, "binary", positive=2) == pytest.approx(theirs)


def test_labels_by_hand() -> None:
    predicted, expected = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    assert accuracy(predicted, expected) == 0.5
    assert f1(predicted, expected, "micro") == (0.5, 0.5, 0.5)
    assert f1(predicted, expected) == pytest.approx((0.5, 4 / 9, (2 / 3 + 2 / 4 + 0) / 3))
    assert f1(predicted, expected, "binary", positive="b") == (1.0, 1 / 3, 0.5)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-PER I-PER O", [(0, 2, "PER")]),
        ("I-PER I-PER O", [(0, 2, "PER")]),  # IOB1, and conlleval on broken IOB2
        ("I-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),  # IOB1 neighbors
        ("I-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("B-PER I-LOC I-LOC", [(0, 1, "PER"), (1, 3, "LOC")]),
        ("B-PER B-PER", [(0, 1, "PER"), (1, 2, "PER")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("S-PER B-PER E-PER I-PER", [(0, 1, "PER"), (1, 3, "PER"), (3, 4, "PER")]),
        ("E-PER E-PER O", [(0, 1, "PER"), (1, 2, "PER")]),
        ("U-LOC B-LOC I-LOC L-LOC", [(0, 1, "LOC"), (1, 4, "LOC")]),
        ("B I O B", [(0, 2, ""), (3, 4, "")]),  # one type: word segmentation
        ("B-a-b I-a-b I-a", [(0, 2, "a-b"), (2, 3, "a")]),
    ],
)  # fmt: skip
def test_spans_by_hand(tags: str, expected: list[tuple[int, int, str]]) -> None:
    assert spans(tags.split()) == [Span(*x) for x in expected]


def test_span_scores_by_hand() -> None:
    # the types swap in the second sentence; the first has one of two spans right, one too many
    expected = [["B-PER", "I-PER", "O", "B-LOC", "O"], ["B-ORG", "O"]]
    predicted = [["B-PER", "I-PER", "O", "O", "B-LOC"], ["B-PER", "O"]]
    assert span_f1(predicted, expected) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert span_f1_by_type(predicted, expected) == {
        "LOC": F1(0, 0, 0),
        "ORG": F1(0, 0, 0),
        "PER": pytest.approx((0.5, 1.0, 2 / 3)),
    }


def test_a_span_does_not_cross_sentences() -> None:
    assert span_f1([["B-X"], ["I-X"]], [["B-X"], ["I-X"]]) == (1, 1, 1)
    assert span_f1([["B-X"], ["I-X"]], [["B-X"], ["B-X"]]) == (1, 1, 1)


@settings(deadline=None)
@given(SENTENCES)
def test_spans_score_as_conlleval_scores_them(sentences: list[list[tuple[str, str]]]) -> None:
    """Against the script's way of counting: one pass, a flag while both sides agree."""
    expected = [[e for e, _ in s] for s in sentences]
    predicted = [[p for _, p in s] for s in sentences]
    right = found = wanted = 0
    inside, last = False, (("O", ""), ("O", ""))
    for sentence in sentences:
        for pair in [*sentence, ("O", "O")]:
            now = tuple(_split(tag) for tag in pair)
            ends = [_ends(*last[i], *now[i]) for i in (0, 1)]
            begins = [_begins(*last[i], *now[i]) for i in (0, 1)]
            if inside and (all(ends) or any(ends) or now[0][1] != now[1][1]):
                right += all(ends)
                inside = False
            inside |= all(begins) and now[0][1] == now[1][1]
            wanted, found = wanted + begins[0], found + begins[1]
            last = now  # type: ignore[assignment]
    score = span_f1(predicted, expected)
    assert score.precision == pytest.approx(right / found if found else 0)
    assert score.recall == pytest.approx(right / wanted if wanted else 0)
    both = score.precision + score.recall
    assert score.f1 == pytest.approx(2 * score.precision * score.recall / both if both else 0)


def _split(tag: str) -> tuple[str, str]:
    match = re.fullmatch(r"([^-]*)-(.*)", tag)
    return (match[1], match[2]) if match else (tag, "")


def _ends(before: str, before_type: str, tag: str, kind: str) -> bool:
    return before + tag in ("BB", "BO", "IB", "IO") or (before != "O" and before_type != kind)


def _begins(before: str, before_type: str, tag: str, kind: str) -> bool:
    return before + tag in ("BB", "IB", "OB", "OI") or (tag != "O" and before_type != kind)


def test_what_cannot_be_scored_is_an_error() -> None:
    with pytest.raises(DataError, match="no labels"):
        accuracy([], [])
    with pytest.raises(DataError, match="2 labels predicted, but 1"):
        f1([1, 2], [1])
    with pytest.raises(UsageError, match="unknown average"):
        f1([1], [1], "weighted")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="sentence 1: 1 tags predicted of 2"):
        span_f1([["O"], ["O"]], [["O"], ["O", "O"]])
    for tag in ("X-PER", "", "PER", "O-PER"):
        with pytest.raises(DataError, match="no tag of a span"):
            spans([tag])
