"""text/words.py: words out of text, and phrases as Gensim scores them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inkstone.text.document import Document
from inkstone.text.store import DocumentStore, write_store
from inkstone.text.words import Phrases, WordsConfig, splitter, write_words

TEXT = "Don't stop: the New-York  café, état 3.5!"


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"split": "none"}, TEXT.split()),
        ({"split": "letters"}, ["Don't", "stop", "the", "New-York", "café", "état", "3", "5"]),
        ({"split": "none", "lowercase": True}, TEXT.lower().split()),
    ],
)
def test_words_of_a_text(config: dict[str, object], expected: list[str]) -> None:
    chosen = WordsConfig(**config)  # type: ignore[arg-type]
    assert splitter(chosen)(TEXT) == expected
    assert chosen.active == (config != {"split": "none"})


def test_chinese_words() -> None:
    pytest.importorskip("jieba")
    cut = splitter(WordsConfig(split="jieba", lowercase=True))
    assert cut("我来到北京清华大学，用GPU。") == ["我", "来到", "北京", "清华大学", "用", "gpu"]


def corpus() -> list[list[str]]:
    random = np.random.default_rng(0)
    texts = []
    for _ in range(300):
        text = random.choice(["a", "b", "c", "d", "new", "york"], size=12).tolist()
        text[3:5] = ["new", "york"]
        texts.append(text if random.random() < 0.8 else [*text[:6], "san", "jose"])
    return texts


def test_phrases_are_scored_by_equation_6() -> None:
    phrases = pytest.importorskip("gensim.models.phrases")
    texts = corpus()
    theirs = phrases.Phrases(texts, min_count=5, threshold=1e-9, delimiter="_").export_phrases()
    total = sum(map(len, texts))
    ours = Phrases(texts, min_count=5, threshold=1e-9).scores
    # Gensim multiplies by the size of its vocabulary, word2phrase by the number of words
    factor = ours["san", "jose"] / theirs["san_jose"]
    assert {"_".join(pair) for pair in ours} == set(theirs)
    for (a, b), score in ours.items():
        assert score == pytest.approx(theirs[f"{a}_{b}"] * factor, rel=1e-6)
    joined = sum(t[i : i + 2] == ["san", "jose"] for t in texts for i in range(len(t)))
    alone = [sum(t.count(w) for t in texts) for w in ("san", "jose")]
    assert ours["san", "jose"] == pytest.approx((joined - 5) * total / (alone[0] * alone[1]))


def test_joining_goes_from_left_to_right() -> None:
    found = Phrases([["new", "york", "york"]] * 20, min_count=1, threshold=1)
    assert found(["new", "york", "york", "new", "york"]) == ["new_york", "york", "new_york"]
    assert found([]) == [] and found(["new"]) == ["new"]


def test_memory_is_bounded_and_frequent_pairs_survive() -> None:
    random = np.random.default_rng(1)
    texts = [
        [f"w{n}" for n in random.integers(5000, size=50)] + ["san", "jose"] for _ in range(200)
    ]
    found = Phrases(texts, min_count=2, threshold=1, max_pairs=500)
    assert found(["san", "jose"]) == ["san_jose"]


def test_stores_of_words(tmp_path: Path) -> None:
    for part, texts in (("train", corpus()), ("valid", [["New", "York", "!"]])):
        documents = (Document(" ".join(t), "x.txt", n) for n, t in enumerate(texts))
        write_store(tmp_path / "in" / part, documents)
    config = WordsConfig(split="letters", lowercase=True, phrases=2, phrase_threshold=2.0)
    line = write_words(tmp_path / "in", tmp_path / "out", config)
    assert "phrases" in line
    train = DocumentStore(tmp_path / "out" / "train")
    assert len(train) == 300 and any("new_york" in train[n].split() for n in range(300))
    assert DocumentStore(tmp_path / "out" / "valid")[0] == "new_york"  # learned from train alone
