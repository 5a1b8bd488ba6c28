"""Scores equal the plain definitions, and intervals cover what they should."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from inkstone.errors import DataError
from inkstone.evaluation import metrics, scores
from inkstone.evaluation.examples import calibration, confusion, label_table
from inkstone.tasks import classification, tagging, translation


def labelled(*labels: str, **settings: Any) -> classification.Task:
    return classification.Task(classification.Config(**settings), labels)


def by_name(task: Any, found: list[Any], given: list[Any]) -> dict[str, float]:
    quick = scores.values(task, found, given)
    whole = {x.name: x.value for x in scores.score(task, found, given, resamples=20)}
    assert all(whole[name] == pytest.approx(value) for name, value in quick.items())
    return whole


def test_label_scores_equal_the_metrics() -> None:
    random = np.random.default_rng(0)
    for labels in (["a", "b"], ["a", "b", "c", "d"]):
        given = random.choice(labels, 200).tolist()
        kept, others = random.random(200) < 0.7, random.choice(labels, 200).tolist()
        found = [g if keep else o for g, keep, o in zip(given, kept, others, strict=True)]
        task = labelled(*labels)
        mine = by_name(task, found, given)
        assert mine["accuracy"] == pytest.approx(metrics.accuracy(found, given))
        if len(labels) == 2:
            assert mine["f1"] == pytest.approx(metrics.f1(found, given, "binary", positive="b").f1)
        else:
            assert mine["macro_f1"] == pytest.approx(metrics.f1(found, given).f1)
        for row in label_table(task, found, given):
            one = metrics.f1(found, given, "binary", positive=row["label"])
            assert (row["precision"], row["recall"], row["f1"]) == pytest.approx(tuple(one))
            assert row["examples"] == given.count(row["label"])


def test_tag_scores_equal_the_metrics() -> None:
    task = tagging.Task(tagging.Config(), ["B-X", "I-X", "O"])
    given = [("B-X", "I-X", "O"), ("O", "B-X"), ("O",)]
    found = [("B-X", "O", "O"), ("O", "B-X"), ("B-X",)]
    mine = by_name(task, found, given)
    assert mine["span_f1"] == pytest.approx(metrics.span_f1(found, given).f1)
    assert mine["token_accuracy"] == pytest.approx(4 / 6)
    words = tagging.Task(tagging.Config(), ["DET", "NOUN"])
    assert words.metrics == ("token_accuracy",)


def test_scores_of_sets_of_labels() -> None:
    task = labelled("a", "b", "c", multi_label=True)
    given = [("a", "b"), (), ("c",)]
    found = [("a",), ("b",), ("c",)]
    mine = by_name(task, found, given)
    assert mine["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert mine["exact_match"] == pytest.approx(1 / 3)
    assert mine["macro_f1"] == pytest.approx((1 + 0 + 1) / 3)


def test_texts_are_scored_as_sacrebleu_scores_them() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    task = translation.Task(translation.Config())
    found = ["the cat sat on the mat", "a dog barks loudly at me"]
    given = ["the cat sat on a mat", "the dog barks at me"]
    bleu, chrf = scores.score(task, found, given, resamples=10)
    assert bleu.value == pytest.approx(sacrebleu.corpus_bleu(found, [given]).score)
    assert chrf.value == pytest.approx(sacrebleu.corpus_chrf(found, [given]).score)
    assert "tok:13a" in bleu.definition and bleu.scale == 1.0
    for row in (bleu, chrf):
        assert json.loads(json.dumps(row.to_dict())) == row.to_dict()
        assert row.low <= row.value <= row.high


def test_texts_that_are_all_wrong_have_an_interval() -> None:
    """Some draws score nothing at all, others a little."""
    pytest.importorskip("sacrebleu")
    task = translation.Task(translation.Config())
    bleu, chrf = scores.score(task, ["q", "zz", "x"], ["a b c d", "zz", "the cat"], resamples=200)
    assert chrf.low == 0.0 < chrf.value < chrf.high and bleu.low <= bleu.value <= bleu.high


def test_the_interval_is_that_of_a_share() -> None:
    """Of n right-or-wrong answers the standard error is √(p(1-p)/n)."""
    n, p = 1000, 0.8
    given = ["a"] * n
    found = ["a"] * 800 + ["b"] * 200
    accuracy = scores.score(labelled("a", "b", "c"), found, given)[0]
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    assert accuracy.low == pytest.approx(p - half, abs=0.005)
    assert accuracy.high == pytest.approx(p + half, abs=0.005)
    again = scores.score(labelled("a", "b", "c"), found, given)[0]
    assert again == accuracy, "the same answers have the same interval"


def test_confusion_counts_right_rows_and_predicted_columns() -> None:
    table = confusion(("a", "b"), ["a", "b", "b"], ["a", "a", "b"])
    assert table == {"labels": ["a", "b"], "rows": [[1, 1], [0, 1]]}


def test_calibration_is_the_mean_gap_between_probability_and_accuracy() -> None:
    found = calibration([0.95] * 10 + [0.55] * 10, [True] * 10 + [False] * 5 + [True] * 5)
    assert found["error"] == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert [n for *_, n in found["bins"]] == [10, 10]


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="no examples"):
        scores.score(labelled("a", "b"), [], [])
