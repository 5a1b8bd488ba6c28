"""An index of documents: passages stand where they say, only changes are read, both lists count."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inkstone as ink
from inkstone.errors import CheckpointError, DataError, UsageError
from inkstone.inference import index_files
from inkstone.inference.index import Index, Passage, fuse, marks

FILES = {
    "rivers.txt": "The river Ae is green.\r\n\r\nThe river Be is cold.\n",
    "land/lakes.md": "# Lakes\n\n" + "The lake is black and deep. " * 40 + "\n\nNobody swims here.",
    "rows.jsonl": '{"text": "Cats sleep."}\n{"text": "Dogs bark\\nat night."}\n',
    "page.html": "<html><body><p>Ravens fly.</p><p>Rooks too.</p></body></html>",
    "shi.txt": "床前明月光，疑是地上霜。举头望明月，低头思故乡。",
}


class Letters:
    """Counts letters: an embedder whose vectors are known, and which knows what it was given."""

    fingerprint = "letters"

    def __init__(self) -> None:
        self.given: list[str] = []

    def __call__(self, texts: Sequence[str], progress: Any = None) -> Any:
        self.given += texts
        rows = [[text.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
        if progress is not None:
            progress(len(texts))
        return np.array(rows, np.float32).reshape(-1, 26)


@pytest.fixture
def docs(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
    return tmp_path / "docs"


def opened(docs: Path, embedder: Any = None, **options: Any) -> Index:
    return Index.open(docs, embedder, folder=docs.parent / "index", **options)


def test_passages_stand_where_they_say(docs: Path) -> None:
    index = opened(docs)
    for query in ("river cold", "lake", "nobody swims", "明月", "green"):
        for found in index.search(query, 50):
            if found.source.endswith((".txt", ".md")):
                raw = (docs / found.source).read_bytes().decode()
                assert raw[found.start : found.end] == found.text
                assert found.line == 1 + raw.count("\n", 0, found.start)
    assert [p.source for p in index.search("nobody swims")] == ["land/lakes.md"]
    assert index.search("dogs")[0].place == "rows.jsonl, record 2"
    assert index.search("Ravens")[0].place == "page.html, at 0"
    assert index.search("明月")[0].place == "shi.txt, line 1"
    assert index.search("xyzzy") == [] and index.search("") == []


def test_scores_are_those_of_a_slow_look(docs: Path) -> None:
    embedder = Letters()
    index = opened(docs, embedder)
    texts = [index.snapshot.passage(i)[1]["text"] for i in range(len(index))]
    made, asked = embedder(texts), embedder(["cold river"])[0]
    cosines = made @ asked / np.linalg.norm(made, axis=1).clip(1e-9) / np.linalg.norm(asked)
    found = index.search("cold river", 100, by="meaning")
    assert [p.text for p in found] == [texts[i] for i in np.argsort(-cosines, kind="stable")]
    np.testing.assert_allclose([p.score for p in found], np.sort(cosines)[::-1], atol=2e-3)
    words = index.search("cold river", 100, by="words")
    both = index.search("cold river", 100)
    places = [{p.text: i for i, p in enumerate(x, 1)} for x in (words, found)]
    for passage in both:
        wanted = sum(1 / (60 + x[passage.text]) for x in places if passage.text in x)
        assert passage.score == pytest.approx(wanted)
    assert [p.score for p in both] == sorted((p.score for p in both), reverse=True)


def test_only_what_changed_is_embedded_again(docs: Path) -> None:
    first = Letters()
    whole = opened(docs, first)
    assert whole.fresh == len(whole) == len(first.given)
    again = Letters()
    assert opened(docs, again).fresh == 0 and again.given == []
    (docs / "rivers.txt").rename(docs / "streams.txt")  # moved: known by its content
    (docs / "shi.txt").write_text("A new text.", encoding="utf-8")
    (docs / "page.html").unlink()
    os.utime(docs / "rows.jsonl", ns=(1, 1))  # touched, not changed
    changed = Letters()
    index = opened(docs, changed)
    assert changed.given == ["A new text."] and index.fresh == 1
    assert index.search("green")[0].source == "streams.txt"
    scratch = Index.open(docs, Letters(), folder=docs.parent / "other")
    for query in ("river", "new", "lake deep"):
        assert index.search(query, 99) == scratch.search(query, 99)


def test_another_model_or_none_is_another_index(docs: Path) -> None:
    other = Letters()
    other.fingerprint = "others"
    opened(docs, Letters())
    assert opened(docs, other).fresh and len(other.given) == len(opened(docs, other))
    plain = opened(docs)
    assert plain.snapshot.vectors is None and plain.search("river", by="both")
    with pytest.raises(UsageError, match="no model"):
        plain.search("river", by="meaning")
    for wrong in ({"top": 0}, {"by": "guess"}):
        with pytest.raises(UsageError):
            plain.search("river", **wrong)  # type: ignore[arg-type]


def test_what_cannot_be_read_is_passed_over_and_said(docs: Path) -> None:
    (docs / "bad.txt").write_bytes(b"ab\xff\xfe\xfd" * 9)
    (docs / "rows.jsonl").write_text('{"text": "fine words"}\n{"other": 1}\nnot json\n')
    index = opened(docs)
    assert index.search("fine")[0].record == 1
    assert any("damaged files" in note for note in index.notes)
    assert any("bad records" in note for note in index.notes)
    with pytest.raises(DataError, match="does not exist"):
        Index.open(docs / "nowhere", folder=docs.parent / "x")
    (docs.parent / "empty").mkdir()
    (docs.parent / "empty" / "a.txt").write_text(" \n ")
    with pytest.raises(DataError, match="hold no text"):
        Index.open(docs.parent / "empty", folder=docs.parent / "y")


def test_what_a_user_made_is_never_written_over(docs: Path) -> None:
    mine = docs.parent / "mine"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="holds no index"):
        Index.open(docs, folder=mine)
    assert [p.name for p in mine.iterdir()] == ["letter.txt"]
    inside = Index.open(docs, folder=docs / "index")  # does not find itself
    assert Index.open(docs, folder=docs / "index").fresh == 0
    assert not any("passages" in p.source for p in inside.search("river lake cats", 99))


@pytest.mark.parametrize("name", ["index.json", *(f"{x}.npy" for x in index_files.ARRAYS),
                                  "offsets.npy", "vectors.npy", "passages.jsonl"])  # fmt: skip
def test_a_damaged_index_is_known_and_made_again(docs: Path, name: str) -> None:
    opened(docs, Letters())
    path = docs.parent / "index" / name
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[: len(whole) // 2], b"", b"\x80\x04K\x01."):
        if name == "passages.jsonl" or name.endswith(".npy"):
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"damaged|JSON"):
                index_files.read(docs.parent / "index")
            assert opened(docs, Letters()).search("green")[0].source == "rivers.txt"
    table = json.loads((docs.parent / "index" / "index.json").read_text())
    for key, value in (("files", []), ("files", [{"name": 1}]), ("settings", 3), ("format", 99)):
        (docs.parent / "index" / "index.json").write_text(json.dumps({**table, key: value}))
        with pytest.raises(CheckpointError):
            index_files.read(docs.parent / "index")
        assert opened(docs, Letters()).search("green")[0].source == "rivers.txt"


def test_numbers_that_lead_out_of_the_arrays(docs: Path) -> None:
    opened(docs)
    path = docs.parent / "index" / "texts.npy"
    numbers = np.load(path)
    for wrong in (-1, 1 << 20):
        numbers[0] = wrong
        np.save(path, numbers)
        with pytest.raises(CheckpointError, match="do not fit"):
            index_files.read(docs.parent / "index")


def test_what_is_embedded_is_kept_when_the_rest_is_broken_off(
    docs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inkstone.inference import index as module

    monkeypatch.setattr(module, "SAVE_S", -1.0)
    monkeypatch.setattr(module, "EMBEDDED_AT_ONCE", 1)

    class Tired(Letters):
        def __call__(self, texts: Sequence[str], progress: Any = None) -> Any:
            if len(self.given) > 5:
                raise KeyboardInterrupt
            return super().__call__(texts, progress)

    with pytest.raises(KeyboardInterrupt):
        opened(docs, Tired())
    rest = Letters()
    index = opened(docs, rest)
    assert 0 < len(rest.given) < len(index)
    assert index.search("green")[0].source == "rivers.txt"


def test_fusion_and_marks() -> None:
    assert fuse([[(7, 0.9), (3, 0.1)], [(3, 12.0), (5, 1.0)]]) == [
        (3, 1 / 61 + 1 / 62), (7, 1 / 61), (5, 1 / 62),
    ]  # fmt: skip
    text = "Rivers: the River's bank. 明月光"
    assert [text[a:b] for a, b in marks(text, "river BANK 明月光")] == ["River", "bank", "明月光"]
    assert marks(text, "") == []


def test_from_python(docs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(docs.parent / "cache"))
    found = ink.search(docs, "green river", top=1)
    assert [type(x) for x in found] == [Passage] and found[0].source == "rivers.txt"
    assert list((docs.parent / "cache" / "inkstone" / "search").iterdir())
    assert ink.search([docs / "shi.txt"], "故乡")[0].source.endswith("shi.txt")


def test_nothing_is_executed_or_written_elsewhere(docs: Path, no_side_effects: Any) -> None:
    with no_side_effects():
        assert opened(docs).search("green")
