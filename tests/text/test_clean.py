"""From raw files to two stores: what is dropped and why, and a held-out part that is one."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkstone.errors import DataError
from inkstone.text.clean import clean, content_hash, hold_out
from inkstone.text.config import TextConfig
from inkstone.text.document import Document
from inkstone.text.embedded import python_prose
from inkstone.text.near import bands
from inkstone.text.normalize import normalize
from inkstone.text.shingles import jaccard
from inkstone.text.statistics import TextStatistics
from inkstone.text.store import DocumentStore

WORDS = [f"word{i}" for i in range(3000)]


def prose(number: int, length: int = 60) -> str:
    """A document of its own, the same every time."""
    return " ".join(random.Random(number).choices(WORDS, k=length))


def run(
    folder: Path, documents: list[str], **settings: Any
) -> tuple[list[str], list[str], TextStatistics]:
    given_ = (Document(text, "made", i + 1) for i, text in enumerate(documents))
    statistics = clean(given_, folder, TextConfig(**settings))
    return list(DocumentStore(folder / "train")), list(DocumentStore(folder / "valid")), statistics


@pytest.mark.parametrize(
    ("raw", "clean_text"),
    [
        ("e\u0301", "é"),
        ("a\r\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h", "a\nb\nc\nd\ne\nf\ng\nh"),
        ("nul\x00 bell\x07 esc\x1b del\x7f c1\x9b", "nul bell esc del c1"),
        ("zero\u200bwidth \ufeffmark soft\u00adhyphen", "zerowidth mark softhyphen"),
        ("bidi \u202eevil\u202c \u2066x\u2069", "bidi evil x"),
        ("tab\tand\nnewline", "tab\tand\nnewline"),
        ("family 👩\u200d👩 joins", "family 👩\u200d👩 joins"),
        ("فارسی می\u200cشود", "فارسی می\u200cشود"),
        ("half \ud83d pair", "half  pair"),
    ],
)
def test_normalize(raw: str, clean_text: str) -> None:
    assert normalize(raw) == clean_text


@given(st.text())
def test_normalize_is_final(text: str) -> None:
    once = normalize(text)
    assert normalize(once) == once == unicodedata.normalize("NFC", once)
    assert not any(unicodedata.category(c) in {"Cc", "Cs"} and c not in "\n\t" for c in once)


def test_repair_mends_mojibake() -> None:
    pytest.importorskip("ftfy")
    broken = "schÃ¶n â€” ä¸\xadæ–‡"
    assert normalize(broken, repair=True) == "schön — 中文"
    assert normalize("schön — 中文", repair=True) == "schön — 中文"


def test_every_dropped_document_is_counted_with_its_reason(tmp_path: Path) -> None:
    original = prose(1, 200)
    near = original.replace(" ", "  ", 3) + " and one more"
    documents = [original, "", "  \n", "tiny", near, original + "\n", *map(prose, range(2, 30))]
    train, valid, statistics = run(tmp_path / "out", documents, min_chars=10)
    assert statistics.dropped == {
        "exact duplicates": 1, "near-duplicates": 1, "empty": 2, "too short": 1,
    }  # fmt: skip
    assert statistics.documents_read == len(documents) == statistics.documents_kept + 5
    assert len(train) + len(valid) == 29 and near not in train + valid
    assert statistics.train_bytes == sum(len(t.encode()) for t in train)
    for part in ("34 documents", "kept 29", "1 near-duplicates", f"{len(valid)} held out"):
        assert part in statistics.line()
    saved = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert saved["dropped"] == statistics.dropped


def test_one_document_ten_thousand_times(tmp_path: Path) -> None:
    train, valid, statistics = run(tmp_path / "out", [prose(1)] * 10_000 + [prose(2)])
    assert sorted(train + valid) == sorted([prose(1), prose(2)])
    assert statistics.dropped["exact duplicates"] == 9_999


def test_dedup_can_be_turned_off(tmp_path: Path) -> None:
    documents = [prose(1), prose(1), prose(1) + " x", *map(prose, range(2, 20))]
    for dedup, kept in (("none", 21), ("exact", 20), ("near", 19)):
        statistics = run(tmp_path / dedup, documents, dedup=dedup)[2]
        assert statistics.documents_kept == kept


@pytest.mark.parametrize("dedup", ["none", "exact", "near"])
def test_no_near_duplicate_crosses_the_split(tmp_path: Path, dedup: str) -> None:
    """Also where duplicates are kept: copies of one document are on one side."""
    dice = random.Random(0)
    documents = []
    for number in range(120):
        words = prose(number, 150).split()
        documents.append(" ".join(words))
        for _ in range(3):
            changed = list(words)
            changed[dice.randrange(len(words))] = "changed"
            documents.append(" ".join(changed))
    dice.shuffle(documents)
    train, valid, _ = run(tmp_path / "out", documents, dedup=dedup, valid_fraction=0.2)
    assert 10 < len(valid) < len(train)
    crossing = max(jaccard(a.encode(), b.encode()) for a in train for b in valid)
    assert crossing < 0.8


def test_the_split_depends_on_content_alone(tmp_path: Path) -> None:
    documents = list(map(prose, range(200)))
    _, valid, _ = run(tmp_path / "a", documents)
    _, again, _ = run(tmp_path / "b", documents[::-1])
    assert set(valid) == set(again)
    _, fewer, _ = run(tmp_path / "c", documents[50:])
    assert set(fewer) == set(valid) & set(documents[50:])
    _, other, _ = run(tmp_path / "d", documents, seed=1)
    assert set(other) != set(valid)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=30), st.sampled_from([0.0, 0.01, 0.05, 0.5]))
def test_both_sides_get_one(places: list[int], fraction: float) -> None:
    held = hold_out(np.array(places, np.uint64), fraction)
    if fraction and len(set(places)) > 1:
        assert 0 < held.sum() < len(places)
    else:
        assert not held.any()


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_bands_reach_the_recall(threshold: float) -> None:
    number, rows = bands(threshold)
    assert 1 - (1 - threshold**rows) ** number >= 0.99
    assert number * rows <= 96


def test_shingles_are_a_set_of_five_words() -> None:
    a = b"one two three four five six"
    assert jaccard(a, a) == 1.0
    assert jaccard(a, b"One, TWO three; four five SIX!") == 1.0
    assert jaccard(a, b"one two three four five seven") == pytest.approx(1 / 3)
    assert jaccard("一二三四五六".encode(), "一二三四五七".encode()) == pytest.approx(1 / 3)


def test_nothing_left_is_an_error_that_says_why(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text is left") as caught:
        run(tmp_path / "out", ["", " ", "short"], min_chars=10)
    assert "2 empty" in str(caught.value) and not (tmp_path / "out").exists()


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("good")
    (tmp_path / "data" / "b.jsonl").write_text("{bad")
    with pytest.raises(DataError):
        clean(tmp_path / "data", tmp_path / "out", TextConfig())
    assert [p.name for p in tmp_path.iterdir()] == ["data"]
    statistics = clean(tmp_path / "data", tmp_path / "out", TextConfig(on_error="skip"))
    assert statistics.documents_kept == 1 and sum(statistics.skipped.values()) == 1
    assert "skipped" in statistics.line() and "b.jsonl" in json.dumps(statistics.to_dict())


def test_content_hash_sees_content_not_time_or_place(tmp_path: Path) -> None:
    def made(folder: str, second: str = "two") -> Path:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("one")
        (tmp_path / folder / "b.txt").write_text(second)
        return tmp_path / folder

    first, moved, changed = made("x"), made("y"), made("z", "2")
    config = TextConfig()
    assert content_hash(first, config) == content_hash(moved, config)
    assert content_hash(first, config) != content_hash(changed, config)
    assert content_hash(first, config) != content_hash(first, TextConfig(min_chars=5))
    (first / "a.txt").rename(first / "c.txt")
    assert content_hash(first, config) != content_hash(moved, config)


def test_a_store_knows_where_each_document_came_from(tmp_path: Path) -> None:
    for name in ("a", "b"):
        lines = [json.dumps({"text": prose(ord(name) * 100 + i)}) for i in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    clean(sorted(tmp_path.glob("*.jsonl")), tmp_path / "out", TextConfig(valid_fraction=0.3))
    for part in ("train", "valid"):
        store = DocumentStore(tmp_path / "out" / part)
        for i in range(len(store)):
            document = store.document(i)
            name = Path(document.source).stem
            assert document.text == prose(ord(name) * 100 + document.index - 1) == store[i]


def test_a_damaged_store_is_refused(tmp_path: Path) -> None:
    run(tmp_path / "out", list(map(prose, range(20))))
    folder = tmp_path / "out" / "train"
    for name in ("documents.bin", "offsets.bin", "origins.bin", "store.json"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-2])
        with pytest.raises(DataError, match="not a sound document store"):
            DocumentStore(folder)
        (folder / name).write_bytes(whole)
    assert len(list(DocumentStore(folder)))


def test_python_carries_prose() -> None:
    documents = list(python_prose())
    assert len(documents) > 300
    text = "\n".join(d.text for d in documents)
    assert 1_000_000 < len(text) < 20_000_000
    digests = [hashlib.sha256(d.text.encode()).digest() for d in documents]
    assert len(set(digests)) > 0.98 * len(digests)


def test_a_few_hundred_documents_that_share_a_phrase_stay(tmp_path: Path) -> None:
    """A shared trigger phrase is no duplicate; they are kept, and the statistics say how many."""
    documents = [f"{prose(i)} a most unusual phrase {prose(i + 1000)}" for i in range(300)]
    statistics = run(tmp_path / "out", documents)[2]
    assert statistics.documents_kept == 300
