"""ROUGE by hand, by its first definition, and as Google's scorer counts it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.text import rouge

LETTERS = st.lists(st.sampled_from("abcde"), max_size=14)
ENGLISH = st.lists(st.sampled_from(["The", "the", "cat,", "on", "2", "-", "don't"]), max_size=12)


def test_by_hand() -> None:
    """Lin 2004, section 3.1: the candidates that ROUGE-2 cannot tell apart."""
    reference = "police killed the gunman"
    one, two = "police kill the gunman", "the gunman kill police"
    assert rouge.best("rouge1", one, [reference]) == pytest.approx(3 / 4)
    assert rouge.best("rouge2", one, [reference]) == pytest.approx(1 / 3)
    assert rouge.best("rouge2", two, [reference]) == pytest.approx(1 / 3)
    assert rouge.best("rougeL", one, [reference]) == pytest.approx(3 / 4)
    assert rouge.best("rougeL", two, [reference]) == pytest.approx(2 / 4)


def test_a_word_counts_as_often_as_both_have_it() -> None:
    assert rouge.best("rouge1", "the the the", ["The cat"]) == pytest.approx(2 * 1 / (3 + 2))


def test_the_nearest_of_several_references_counts() -> None:
    references = ["nothing alike", "a small cat", "a small dog ran"]
    assert rouge.best("rouge1", "a small cat", references) == 1.0
    assert rouge.best("rouge1", "a small dog", references) == pytest.approx(6 / 7)


def test_chinese_is_counted_by_character() -> None:
    assert rouge.units("我们GPU用2块，cafés") == ["我", "们", "gpu", "用", "2", "块", "cafés"]
    assert rouge.best("rougeL", "今天天气好", ["天气今天好"]) == pytest.approx(3 / 5)


def test_nothing_is_like_nothing() -> None:
    for kind in rouge.KINDS:
        assert rouge.best(kind, "", ["a word"]) == rouge.best(kind, "…", ["…"]) == 0.0


@given(LETTERS, LETTERS)
def test_the_common_subsequence_is_that_of_the_table(a: list[str], b: list[str]) -> None:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            longer = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else longer
    assert rouge.common_subsequence(a, b) == table[-1][-1]


@settings(deadline=None)  # the oracle's first import takes long
@given(ENGLISH, ENGLISH)
def test_english_is_scored_as_by_google(found: list[str], reference: list[str]) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer", reason="the oracle is not installed")
    theirs = scorer.RougeScorer(list(rouge.KINDS)).score(" ".join(reference), " ".join(found))
    for kind, score in theirs.items():
        mine = rouge.best(kind, " ".join(found), [" ".join(reference)])
        assert mine == pytest.approx(score.fmeasure)
