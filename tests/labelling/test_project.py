"""A table and its labels: parts, scores, the curve, and what is written without people."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from inkstone.errors import DataError, UsageError
from inkstone.labelling.project import point
from inkstone.labelling.rules import Rule
from inkstone.labelling.table import check_place, read_texts
from tests.labelling.conftest import Maker, sentences

TRUTH = {row["text"]: row["truth"] for row in sentences(200)}


def label(project: object, places: list[int]) -> None:
    for i in places:
        text = project.texts[i]  # type: ignore[attr-defined]
        project.store.label(text.id, TRUTH[text.text])  # type: ignore[attr-defined]


def test_checks_are_a_fifth_and_teach_nothing(project: Maker) -> None:
    one = project()
    assert 0.12 < one.checks.mean() < 0.28
    checks = np.flatnonzero(one.checks)
    label(one, checks.tolist())
    assert one.guess() is None and one.score() is None and (one.teachable() == -1).all()
    label(one, np.flatnonzero(~one.checks)[:60].tolist())
    score = one.score()
    assert score is not None and score.labels == 60 and score.examples == len(checks)
    p = one.guess()
    assert p is not None
    truth = np.array([one.labels.index(TRUTH[t.text]) for t in one.texts])
    assert score.accuracy == (p[checks].argmax(1) == truth[checks]).mean() > 0.7
    assert not one.checks[one.suggest(20)].any()


def test_parts_do_not_depend_on_the_order_of_the_table(
    project: Maker, table: Path, tmp_path: Path
) -> None:
    first = project()
    table.write_text("\n".join(reversed(table.read_text().splitlines())))
    second = project()
    assert (first.checks == second.checks[::-1]).all()


def test_a_check_comes_after_every_fourth_label(project: Maker) -> None:
    one = project()
    drawn = []
    for _ in range(50):
        place = one.next_check()
        drawn.append(place is not None)
        label(one, [one.suggest(1)[0] if place is None else place])
    assert sum(drawn) == 10


def test_the_curve_is_the_same_when_the_file_is_opened_again(project: Maker) -> None:
    one = project()
    label(one, np.flatnonzero(one.checks)[:15].tolist() + np.flatnonzero(~one.checks)[:40].tolist())
    curve = one.curve()
    one.store.close()
    again = project(labels=()).curve()
    assert again == curve and curve[-1] == one.score()
    assert [p.labels for p in curve] == sorted({p.labels for p in curve})
    assert curve[-1].accuracy >= curve[0].accuracy and len(curve) > 10


def test_wilson_by_hand() -> None:
    found = point(7, 8, 10)  # Wikipedia's formula, worked by R's prop.test(8, 10, correct = FALSE)
    assert (found.accuracy, found.labels, found.examples) == (0.8, 7, 10)
    assert (found.low, found.high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert point(1, 0, 3).low == pytest.approx(0) and point(1, 3, 3).high == pytest.approx(1)


def test_labels_of_the_table_are_a_persons(project: Maker, table: Path) -> None:
    rows = sentences(200)
    for row in rows[:50]:
        row["label"] = row["truth"]
    table.write_text("\n".join(map(json.dumps, rows)))
    one = project(label_field="label")
    assert sum(by["person"] for by in one.counts().values()) == 50 and one.guess() is not None
    assert len(one.open_rows()) == 150
    assert not one.store.path.exists()
    with pytest.raises(DataError, match="none of"):
        project(labels=("sport", "cats"), label_field="label")


def test_rules_then_people_then_the_model(project: Maker) -> None:
    one = project()
    rules = [
        Rule(label="sport", name="game", keywords=("match", "goal", "team", "coach")),
        Rule(label="money", name="bank", keywords=("market", "share", "bank", "price")),
        Rule(label="money", name="wrong", keywords=("match",)),
    ]
    facts = one.apply_rules(rules)
    assert facts["covered"] == facts["written"] == sum(b["rule"] for b in one.counts().values())
    assert facts["rules"][2]["conflict"] == facts["rules"][2]["coverage"] > 0
    said = {one.texts[i].text: one.label_of(i) for i in range(200)}
    right = [TRUTH[text] == x.label for text, x in said.items() if x]
    assert np.mean(right) > 0.9 and all(x.source for x in said.values() if x)
    assert one.guess() is not None, "rules alone can teach"
    assert one.apply_rules(rules)["written"] == 0, "nothing new"
    places = np.flatnonzero(~one.checks)[:30].tolist()
    label(one, places + np.flatnonzero(one.checks)[:20].tolist())
    measured = one.apply_rules(rules)["rules"]
    assert measured[0]["measured"] == 1 and measured[2]["measured"] == 0
    assert measured[2]["accuracy"] < measured[0]["accuracy"]
    taught = one.self_train(share=0.6)
    assert taught["written"] > 20 and 30 <= taught["before"].labels < taught["after"].labels
    for i in places:
        found = one.label_of(i)
        assert found is not None and found.by == "person"
    assert not any(
        (found := one.label_of(int(i))) and found.by == "model" for i in np.flatnonzero(one.checks)
    )


def test_adding_and_exporting(project: Maker, tmp_path: Path) -> None:
    one = project()
    filled = tmp_path / "filled.jsonl"
    rows = [{"text": one.texts[i].text, "label": "sport" if i else None} for i in range(3)]
    filled.write_text("\n".join(map(json.dumps, rows)))
    assert one.add(filled, "text", "label") == 2 and one.add(filled, "text", "label") == 0
    assert one.export(tmp_path / "train.jsonl", "text") == 2
    texts = read_texts(tmp_path / "train.jsonl", "text", "label")
    assert [(t.text, t.label) for t in texts] == [(one.texts[i].text, "sport") for i in (1, 2)]
    with pytest.raises(UsageError, match="is there already"):
        one.export(tmp_path / "train.jsonl", "text")
    filled.write_text('{"text": "of another table", "label": "sport"}')
    with pytest.raises(DataError, match="not in the table"):
        one.add(filled, "text", "label")


def test_tables_that_are_no_good(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a", "label": [1]}\n')
    with pytest.raises(DataError, match="not a label"):
        read_texts(path, "text", "label")
    with pytest.raises(DataError, match="no field 'body'"):
        read_texts(path, "body", None)
    path.write_text('{"text": "  "}\n')
    with pytest.raises(DataError, match="no text"):
        read_texts(path, "text", None)
    path.write_text('{"text": "a"}\n{"text": "a", "label": 1}\n{"text": "b", "label": ""}\n')
    assert [(t.text, t.label) for t in read_texts(path, "text", "label")] == [("a", "1"), ("b", "")]
    with pytest.raises(UsageError, match="part of the data"):
        check_place(path, str(tmp_path))


def test_self_training_needs_two_labels(project: Maker) -> None:
    with pytest.raises(UsageError, match="two labels"):
        project().self_train()
