"""Bag of words against scikit-learn's features, the paper's formula, and hostile folders."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inkstone.errors import CheckpointError, MissingExtraError, ModelError
from inkstone.files import MANIFEST
from inkstone.models._features import Features
from inkstone.models._grams import Counts
from inkstone.models.bag_of_words import Config, Label, Model, log_count_ratio
from inkstone.text.segment import words

sklearn_text = pytest.importorskip("sklearn.feature_extraction.text")

GOOD, BAD = "a fine, warm and clever film", "a dull film, not warm, not clever"
TEXTS = [GOOD, BAD, "clever and warm", "dull , not fine", "warm and fine", "not clever"] * 3
LABELS: list[Label] = ["good", "bad", "good", "bad", "good", "bad"] * 3
SOUP = st.lists(st.text("ab c.", max_size=12), min_size=1, max_size=6)


def _dense(x: Counts) -> np.ndarray:
    dense = np.zeros(x.shape)
    dense[x.rows, x.columns] = x.values
    return dense


def _columns(features: Features) -> list[str]:
    return [features.name(i) for i in range(features.n_features)]


@settings(deadline=None)
@given(SOUP, st.integers(1, 3), st.integers(0, 3), st.integers(1, 3))
def test_counts_are_scikit_learns(texts: list[str], n: int, characters: int, min_df: int) -> None:
    config = Config(word_ngrams=n, char_ngrams=characters, min_df=min_df, weighting="tfidf")
    features, counts = Features.fit(texts, config)
    ours = dict(zip(range(features.n_features), _dense(counts).T, strict=True))
    n_words = features.alphabets[0].grams.n_features
    for kind, order, first, last in [
        ("word", n, 0, n_words),
        ("char", characters, n_words, features.n_features),
    ]:
        if not order:
            continue
        analyzer = sklearn_text.CountVectorizer(
            analyzer=kind, ngram_range=(1, order), tokenizer=words, token_pattern=None
        ).build_analyzer()
        inputs = texts if kind == "word" else [" ".join(t.split()) for t in texts]
        everything = [analyzer(t) for t in inputs]
        names = sorted({g for grams in everything for g in grams})
        theirs = {g: [grams.count(g) for grams in everything] for g in names}
        expected = {g: c for g, c in theirs.items() if sum(map(bool, c)) >= min_df}
        got = {features.name(i): ours[i].tolist() for i in range(first, last)}
        assert got == expected
    assert np.array_equal(_dense(features.counts(texts)), _dense(counts))


@pytest.mark.parametrize("weighting", ["tfidf", "sublinear_tfidf"])
def test_tf_idf_is_scikit_learns(weighting: Any) -> None:
    features, counts = Features.fit(TEXTS, Config(word_ngrams=2, min_df=2, weighting=weighting))
    assert counts.values.max() > 1
    vectorizer = sklearn_text.TfidfVectorizer(
        tokenizer=words, token_pattern=None, ngram_range=(1, 2), vocabulary=_columns(features),
        sublinear_tf=weighting.startswith("sublinear"),
    )  # fmt: skip
    theirs = vectorizer.fit_transform(TEXTS).toarray()
    np.testing.assert_allclose(_dense(features.weigh(counts)), theirs, rtol=1e-12)
    unseen = ["warm warm film of unknown words", ""]
    np.testing.assert_allclose(
        _dense(features.weigh(features.counts(unseen))), vectorizer.transform(unseen).toarray()
    )


def test_the_ratio_by_hand() -> None:
    x = Counts(
        np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), np.ones(4), (3, 2)
    )  # texts: {0, 1}, {1}, {0}; the first is of the class
    ratio = log_count_ratio(x, np.array([True, False, False]), alpha=1.0)
    assert ratio == pytest.approx([math.log((2 / 4) / (2 / 4))] * 2)
    ratio = log_count_ratio(x, np.array([False, True, False]), alpha=0.5)
    assert ratio == pytest.approx([math.log(0.25 / (2.5 / 4)), math.log(0.75 / (1.5 / 4))])


@pytest.mark.parametrize(
    "weighting", ["naive_bayes", "tfidf", "sublinear_tfidf", "counts", "binary"]
)
@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_scikit_learns_regressions(weighting: Any, classes: int) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    labels = [i % classes for i in range(len(TEXTS))]
    model = Model(Config(word_ngrams=2, weighting=weighting)).fit(TEXTS, labels)
    features, counts = Features.fit(TEXTS, model.config)
    x = _dense(features.weigh(counts))
    columns = []
    for label in [1] if classes == 2 else range(classes):
        y = np.array(labels) == label
        scale = log_count_ratio(features.weigh(counts), y, 1.0) if weighting[0] == "n" else 1.0
        theirs = linear.LogisticRegression(
            solver="liblinear", dual=True, random_state=0, max_iter=1000
        ).fit(x * scale, y)
        columns.append(theirs.predict_proba(x * scale)[:, 1])
    expected = np.stack([1 - columns[0], columns[0]] if classes == 2 else columns, axis=1)
    expected /= expected.sum(1, keepdims=True)
    got = model.predict_probabilities(TEXTS)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(got.sum(1), 1)
    assert model.predict(TEXTS) == expected.argmax(1).tolist()


def test_an_explanation_adds_up() -> None:
    for labels in (LABELS, [f"class {i % 3}" for i in range(len(TEXTS))]):
        model = Model(Config(char_ngrams=2)).fit(TEXTS, labels)
        for text in (GOOD, BAD):
            why = model.explain(text, limit=1000)
            assert why.label == model.predict([text])[0]
            assert why.probability == model.predict_probabilities([text]).max()
            odds = why.bias + sum(c.value for c in why.contributions)
            if len(model.labels) == 2:
                assert odds == pytest.approx(math.log(why.probability / (1 - why.probability)))
            sizes = [abs(c.value) for c in why.contributions]
            assert sizes == sorted(sizes, reverse=True) and why.contributions[0].text in text
            assert model.explain(text, limit=2).contributions == why.contributions[:2]


def test_it_reads_chinese_by_characters_and_by_words() -> None:
    texts = ["房间很干净，服务热情", "房间很脏，不会再来", "服务热情，下次再来", "很脏，服务差"] * 2
    labels = ["好", "差", "好", "差"] * 2
    by_characters = Model(Config(word_ngrams=0, char_ngrams=2)).fit(texts, labels)
    assert by_characters.predict(["干净，热情", "脏，差"]) == ["好", "差"]
    assert {c.text for c in by_characters.explain("热情").contributions} == {"热", "情", "热情"}
    pytest.importorskip("jieba")
    by_words = Model(Config(word_ngrams=1, segmenter="jieba")).fit(texts, labels)
    assert by_words.predict(["干净，热情", "很脏，差"]) == ["好", "差"]
    assert "热情" in {c.text for c in by_words.explain("热情").contributions}


@pytest.mark.parametrize(
    "config",
    [{}, {"weighting": "sublinear_tfidf", "char_ngrams": 3}, {"word_ngrams": 0, "char_ngrams": 2}],
)
def test_save_and_load(config: dict[str, Any], tmp_path: Path) -> None:
    texts = [*TEXTS, "half a pair \ud83d", "half a pair \ud83d"]
    model = Model(Config(**config)).fit(texts, [*LABELS, 3, 3])
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.labels == model.labels == (3, "bad", "good") and again.config == model.config
    assert np.array_equal(again.predict_probabilities(texts), model.predict_probabilities(texts))
    assert again.explain(GOOD) == model.explain(GOOD)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
        "config.json", "model.safetensors", MANIFEST, "vocabulary.json",
    ]  # fmt: skip
    assert model.predict_probabilities([]).shape == (0, 3) and model.predict([]) == []


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    Model(Config(weighting="tfidf")).fit(TEXTS, LABELS).save(folder)
    return folder


def _edit_json(name: str, change: Any) -> Any:
    def edit(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return edit


def _edit_arrays(change: Any) -> Any:
    def edit(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return edit


def _assign(name: str, place: Any, value: Any) -> Any:
    return _edit_arrays(lambda a: a[name].__setitem__(place, value))


HOSTILE = {
    "another type": (_edit_json("config.json", lambda c: c.update(model_type="x")), "type 'x'"),
    "a later format": (_edit_json("config.json", lambda c: c.update(format=2)), "newer version"),
    "one label": (_edit_json("config.json", lambda c: c.update(labels=["a"])), "labels"),
    "equal labels": (_edit_json("config.json", lambda c: c.update(labels=["a", "a"])), "labels"),
    "a third label": (_edit_json("config.json", lambda c: c["labels"].append("c")), "do not fit"),
    "unknown setting": (_edit_json("config.json", lambda c: c["settings"].update(x=1)), "settings"),
    "no settings": (_edit_json("config.json", lambda c: c.pop("settings")), "settings"),
    "a word more": (_edit_json("vocabulary.json", lambda c: c["words"].append("z")), "idf"),
    "a word twice": (
        _edit_json("vocabulary.json", lambda c: c["words"].__setitem__(0, c["words"][1])),
        "distinct",
    ),
    "no words": (_edit_json("vocabulary.json", lambda c: c.pop("words")), "vocabulary"),
    "a number as word": (
        _edit_json("vocabulary.json", lambda c: c["words"].__setitem__(0, 7)), "distinct",
    ),
    "key out of range": (_assign("words.2", -1, 2**62), "n-grams of words"),
    "negative key": (_assign("words.2", 0, -1), "n-grams of words"),
    "keys out of order": (_assign("words.3", 0, 2**40), "n-grams of words"),
    "not a number": (_assign("weights", (0, 0), float("nan")), "finite"),
    "other dtype": (_edit_arrays(lambda a: a.update(bias=a["bias"].astype("f4"))), "float32"),
    "other shape": (_edit_arrays(lambda a: a.update(weights=a["weights"][:, 1:])), "do not fit"),
    "two dimensions": (_edit_arrays(lambda a: a.update({"words.2": a["words.2"][None]})), "fit"),
    "missing array": (_edit_arrays(lambda a: a.pop("idf")), "lacks the array 'idf'"),
    "extra array": (_edit_arrays(lambda a: a.update(x=a["idf"])), "unexpected array 'x'"),
    "short idf": (_edit_arrays(lambda a: a.update(idf=a["idf"][1:])), "idf"),
    "a pickle": (lambda f: (f / "model.safetensors").write_bytes(b"\x80\x04."), "safetensors"),
    "cut off": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:-5]
        ),
        "safetensors",
    ),
    "no arrays": (lambda f: (f / "model.safetensors").unlink(), "missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused(case: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    edit, message = HOSTILE[case]
    edit(folder)
    with pytest.raises(CheckpointError):  # the hashes tell
        Model.load(folder)
    (folder / MANIFEST).write_text("{}")  # so does the content, whoever wrote the hashes
    with pytest.raises(CheckpointError, match=message):
        Model.load(folder)


def test_labeling_needs_no_scikit_learn(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sklearn", "sklearn.linear_model", "scipy", "scipy.sparse"):
        monkeypatch.setitem(sys.modules, name, None)
    model = Model.load(saved)
    assert model.predict([GOOD, BAD]) == ["good", "bad"]
    with pytest.raises(MissingExtraError, match=r"inkstone\[eval\]"):
        Model().fit(TEXTS, LABELS)


def test_users_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="2 texts, but 1 labels"):
        Model().fit(["a", "b"], [1])
    with pytest.raises(ModelError, match="at least two labels"):
        Model().fit(["a", "b"], [1, 1])
    with pytest.raises(ModelError, match="a string or an integer"):
        Model().fit(["a", "b"], [0.5, 1.0])  # type: ignore[list-item]
    with pytest.raises(ModelError, match="no n-gram occurs in 2 of the 2 texts"):
        Model().fit(["a", "b"], [1, 2])
    with pytest.raises(ModelError, match="learned nothing"):
        Model().predict(["a"])
    with pytest.raises(ModelError, match="learned nothing"):
        Model().save("never")
    with pytest.raises(ValueError, match="nothing would be counted"):
        Config(word_ngrams=0)
