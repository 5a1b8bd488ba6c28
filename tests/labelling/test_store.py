"""The file of labels: what a person said stays, whoever writes, crashes or sends rubbish."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkstone.errors import DataError, UsageError
from inkstone.labelling.store import Label, Store, text_id

A, B = text_id("a"), text_id("b")


def opened(path: Path) -> Store:
    return Store(path, ["ham", "spam"])


def test_what_was_said_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "labels.jsonl"
    store = opened(path)
    assert not path.exists(), "looking writes nothing"
    store.label(A, "ham")
    store.skip(B)
    assert store.label_many([(B, Label("spam", "rule", 0.75, "prize"))]) == 1
    store.close()
    again = Store(path)  # the labels need not be named again
    assert again.labels == ("ham", "spam") and again.skipped == {B}
    assert again.said == {A: Label("ham", "person"), B: Label("spam", "rule", 0.75, "prize")}
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r.get("by") for r in rows] == [None, "person", "person", "rule"]
    assert all("time" in row for row in rows[1:])


def test_a_person_is_never_overwritten(tmp_path: Path) -> None:
    store = opened(tmp_path / "x")
    assert store.label_many([(A, Label("spam", "model", 0.9, "m"))]) == 1
    assert store.label_many([(A, Label("spam", "model", 0.9, "m"))]) == 0, "nothing new"
    store.label(A, "ham")
    assert store.label_many([(A, Label("spam", "rule", 1.0))]) == 0
    with pytest.raises(UsageError, match="already"):
        store.label(A, "spam")
    assert store.said[A] == Label("ham", "person")
    assert store.undo() == A and store.said[A] == Label("spam", "model", 0.9, "m")
    assert store.undo() is None


def test_undo_goes_back_step_by_step(tmp_path: Path) -> None:
    store = opened(tmp_path / "x")
    store.label(A, "ham")
    store.skip(B)
    assert (store.undo(), store.skipped) == (B, set())
    assert (store.undo(), store.said) == (A, {})
    store.label(A, "spam")
    store.close()
    assert Store(tmp_path / "x").said == {A: Label("spam", "person")}


@given(cut=st.integers(1, 400))
def test_a_line_that_a_crash_cut_short_was_never_said(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("torn") / "x"
    store = opened(path)
    for name in "abcd":
        store.label(text_id(name), "ham")
    store.close()
    whole = path.read_bytes()
    header = whole.index(b"\n") + 1
    path.write_bytes(whole[: max(header, len(whole) - cut)])
    lines = path.read_bytes()
    complete = lines.count(b"\n") - 1
    torn = Store(path)
    said = len(torn.said)
    assert said in (complete, complete + 1)  # one more where only the end of its line is missing
    torn.label(text_id("e"), "spam")
    torn.close()
    again = Store(path)
    assert len(again.said) == said + 1 and again.said[text_id("e")].label == "spam"


HEADER = '{"event": "labels", "format": 1, "labels": ["ham", "spam"]}\n'
GOOD = f'{{"id": "{A}", "event": "label", "label": "ham", "by": "person"}}\n'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("text,label\nhello,ham\n", 1),
        ('{"text": "a user\'s own table"}\n', 1),
        ('{"event": "labels", "format": 2, "labels": ["a", "b"]}\n', 1),
        ('{"event": "labels", "format": 1, "labels": ["a", 7]}\n', 1),
        (HEADER + GOOD + "rubbish\n" + GOOD, 3),
        (HEADER + GOOD.replace("ham", "egg"), 2),
        (HEADER + GOOD.replace("person", "nobody"), 2),
        (HEADER + GOOD.replace('"label",', '"shout",'), 2),
        (HEADER + GOOD.replace("}", ', "confidence": NaN}'), 2),
        (HEADER + GOOD.replace("}", ', "confidence": 7}'), 2),
        (HEADER + GOOD.replace("}", ', "source": []}'), 2),
        (HEADER + '{"id": 7, "event": "skip", "by": "person"}\n', 2),
        (HEADER + "[" * 100_000, 2),
        (HEADER + "[" * 50_000 + "\n", 2),
    ],
)
def test_other_files_are_left_alone(tmp_path: Path, content: str, line: int) -> None:
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(DataError, match=f"line {line}"):
        opened(path)
    assert path.read_text() == content


def test_one_writer(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "x"), opened(tmp_path / "x")
    one.label(A, "ham")
    with pytest.raises(DataError, match="another process"):
        two.label(B, "ham")
    one.close()
    with pytest.raises(DataError, match="changed"):
        two.label(B, "ham")
    assert not two.said
    three = opened(tmp_path / "x")
    three.label(B, "ham")
    assert set(three.said) == {A, B}


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "x")
    store.label(A, "ham")
    before = (tmp_path / "x").read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:5]))  # short writes
    store.label(B, "ham")
    assert opened_said(tmp_path / "x") == {A, B}

    def full(file: int, data: bytes) -> int:
        if len(data) < 50:
            raise OSError(28, "No space left on device")
        return write(file, data[:20])

    monkeypatch.setattr(os, "write", full)
    longer = (tmp_path / "x").read_bytes()
    assert len(longer) > len(before)
    with pytest.raises(DataError, match="No space"):
        store.label(text_id("c"), "ham")
    assert (tmp_path / "x").read_bytes() == longer and set(store.said) == {A, B}


def opened_said(path: Path) -> set[str]:
    return set(Store(path).said)


@pytest.mark.parametrize("labels", [[], ["one"], ["a", " "], [str(n) for n in range(201)]])
def test_labels_are_two_or_more(tmp_path: Path, labels: list[str]) -> None:
    with pytest.raises(UsageError, match="labels"):
        Store(tmp_path / "x", labels)


def test_more_labels_later(tmp_path: Path) -> None:
    store = opened(tmp_path / "x")
    store.label(A, "ham")
    store.close()
    more = Store(tmp_path / "x", ["spam", "egg"])
    more.label(B, "egg")
    more.close()
    assert Store(tmp_path / "x").labels == ("ham", "spam", "egg")
    with pytest.raises(UsageError, match="among"):
        more.label(text_id("c"), "bacon")
