"""The random field against every sequence of tags there is, its gradient, and hostile folders."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inkstone.errors import CheckpointError, ModelError
from inkstone.files import MANIFEST
from inkstone.models._chain import available, loops
from inkstone.models._clues import clues, shape, word_clues
from inkstone.models.crf import Config, Model
from tests.models.test_hmm import SENTENCES, TAGS, WORD

MARKS = [["x" if word[0].isupper() else "y" for word in words] for words in SENTENCES]
BOTH = pytest.mark.parametrize(
    "compiled",
    [False, pytest.param(True, marks=pytest.mark.skipif(not available(), reason="no numba"))],
)


def _model(marks: Any = None, **config: Any) -> Model:
    return Model(Config(min_count=1, **config)).fit(SENTENCES, TAGS, marks)


FITTED = _model()


@settings(deadline=None, max_examples=40)
@given(st.lists(WORD, min_size=1, max_size=4))
def test_viterbi_and_marginals_equal_brute_force(words: list[str]) -> None:
    paths = list(itertools.product(FITTED.tags, repeat=len(words)))
    log_p = np.array([FITTED.log_prob(words, path) for path in paths])
    assert np.exp(log_p).sum() == pytest.approx(1)
    tagged = FITTED.tag([words])[0]
    assert FITTED.log_prob(words, tagged) == pytest.approx(log_p.max())
    table = FITTED.posteriors([words])[0]
    for t, column in itertools.product(range(len(words)), range(len(FITTED.tags))):
        total = sum(
            np.exp(log_p[i]) for i, path in enumerate(paths) if path[t] == FITTED.tags[column]
        )
        assert table[t, column] == pytest.approx(total, abs=1e-9)


def _chance(size: int = 3, n: int = 5, features: int = 7) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    each = [rng.choice(features, size=3, replace=False) for _ in range(n)]
    starts = np.arange(0, 3 * n + 1, 3)
    weights = rng.normal(size=(features, size)).astype(np.float32)
    return (
        np.array([0, 2, 2, n]), np.concatenate(each).astype(np.int32), starts,
        rng.integers(0, size, n), weights, rng.normal(size=(size + 1, size)),
    )  # fmt: skip


@BOTH
def test_a_step_goes_down_the_gradient(compiled: bool) -> None:
    """With sums of squares that rule, a step is lr · gradient: compared with differences."""
    functions = loops(compiled=compiled)
    sentences, ids, starts, tags, weights, chain = _chance()

    def loss(w: Any, c: Any, which: Any) -> float:
        ample = [np.full(len(w), 1e30), np.full(c.shape, 1e30)]
        return functions.learn(
            which, sentences, ids, starts, tags, w.copy(), ample[0], c.copy(), ample[1], 0.0
        )

    for which in (np.array([0]), np.array([2])):
        w, c = weights.copy(), chain.copy()
        rows, large = np.full(len(w), 1e8), np.full(c.shape, 1e8)
        functions.learn(which, sentences, ids, starts, tags, w, rows, c, large, 1e4)
        for table, moved in ((weights, w), (chain, c)):
            for place in np.ndindex(table.shape):
                ends = []
                for step in (1e-2, -1e-2):
                    table[place] += step
                    ends.append(loss(weights, chain, which))
                    table[place] -= step
                slope = (ends[0] - ends[1]) / 2e-2
                assert table[place] - moved[place] == pytest.approx(slope, abs=2e-3)


@pytest.mark.skipif(not available(), reason="no numba")
def test_compiled_or_not_the_same_is_learned() -> None:
    found = []
    for compiled in (False, True):
        sentences, ids, starts, tags, weights, chain = _chance()
        squares, more, order = np.full(7, 0.05), np.ones(chain.shape), np.array([2, 0, 1])
        total = [
            loops(compiled=compiled).learn(
                order, sentences, ids, starts, tags, weights, squares, chain, more, 0.2
            )
            for _ in range(5)
        ]
        assert total[-1] < total[0]
        found.append((np.array(total), weights, chain, squares))
    for plain, fast in zip(*found, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-4, atol=1e-6)


def test_what_was_shown_is_learned_and_a_seed_repeats_it() -> None:
    assert FITTED.tag(SENTENCES) == TAGS
    assert FITTED.tag([[]]) == [[]] and FITTED.posteriors([[]])[0].shape == (0, len(FITTED.tags))
    again = _model()
    np.testing.assert_array_equal(again._weights, FITTED._weights)
    assert not np.array_equal(_model(seed=1)._weights, FITTED._weights)


def test_marks_are_read_and_asked_for() -> None:
    tags = [["X" if m == "x" else "Y" for m in row] for row in MARKS]
    model = Model(Config(min_count=1)).fit(SENTENCES, tags, MARKS)
    assert model.tag([["zzz", "zzz"]], [["x", "y"]]) == [["X", "Y"]]
    with pytest.raises(ModelError, match="needs them"):
        model.tag(SENTENCES)
    with pytest.raises(ModelError, match="1 marks"):
        model.tag([["a", "b"]], [["x"]])


def test_clues_are_told_apart_and_stand_once() -> None:
    assert shape("McDonald's-95") == "AaAaaaaa'a-00"
    for row in clues(["A", "b", "", "中", "b"], ["1", "2", "3", "4", "5"]):
        assert len(row) == len(set(row))


def test_characters_know_the_words_they_are_of(tmp_path: Path) -> None:
    pytest.importorskip("jieba", reason="jieba is not installed")
    tokens = ["我", "在", "北京大学", "a b", "", "图", "书", "馆"]
    found = word_clues(tokens)
    assert len(found) == len(tokens)
    assert [row[0] for row in found[-3:]] == ["in B", "in I", "in E"]
    assert found[-1][1] == "in E 图书馆" and found[-1][2] == "places IE⟩"
    assert found[0] == ["in S", "in S 我", "places ⟨SS"]
    sentences = [list("他在图书馆"), list("图书很多")]
    tags = [[*"OO", "B-L", "I-L", "I-L"], list("OOOO")]
    model = Model(Config(min_count=1, segmenter="jieba")).fit(sentences, tags)
    assert model.tag(sentences) == tags
    assert any(clue.startswith("in ") for clue in model._ids)
    assert not any(clue.startswith("in ") for clue in FITTED._ids)
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    np.testing.assert_array_equal(
        again.posteriors(sentences[:1])[0], model.posteriors(sentences[:1])[0]
    )


@pytest.mark.parametrize(
    ("sentences", "tags", "match"),
    [
        ([["a"]], [], "1 sentences, but tags of 0"),
        ([["a", "b"]], [["X"]], "sentence 0: 2 tokens, but 1 tags"),
        ([], [], "at least one tagged token"),
    ],
)
def test_what_cannot_be_learned(sentences: Any, tags: Any, match: str) -> None:
    with pytest.raises(ModelError, match=match):
        Model().fit(sentences, tags)
    with pytest.raises(ModelError, match="learned nothing yet"):
        Model().tag([["a"]])


def test_save_and_load(tmp_path: Path) -> None:
    model = _model(MARKS)
    model.save(tmp_path / "m")
    loaded = Model.load(tmp_path / "m")
    assert loaded.config == model.config and loaded.with_marks
    for a, b in zip(
        model.posteriors(SENTENCES, MARKS), loaded.posteriors(SENTENCES, MARKS), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def _spoil(folder: Path, what: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    arrays = load_file(folder / "model.safetensors")
    if what == "tags":
        config["tags"] = ["A", "A"]
    elif what == "settings":
        config["settings"] = {"passes": 0}
    elif what == "fewer tags":
        config["tags"] = config["tags"][:-1]
    elif what == "nan":
        arrays["weights"][0, 0] = np.nan
    elif what == "chain":
        arrays["chain"] = arrays["chain"][:-1]
    elif what == "clues":
        (folder / "clues.json").write_text('{"clues": ["a", 1]}')
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / "model.safetensors")
    (folder / MANIFEST).unlink(missing_ok=True)


@pytest.mark.parametrize("what", ["tags", "settings", "fewer tags", "nan", "chain", "clues"])
def test_a_damaged_folder_is_a_named_error(tmp_path: Path, what: str) -> None:
    FITTED.save(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "m")
    _spoil(tmp_path / "m", what)
    with pytest.raises(CheckpointError):
        Model.load(tmp_path / "m")
