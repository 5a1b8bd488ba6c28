"""The tagger against every sequence of tags there is, Brants's formulas, and hostile folders."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inkstone.errors import CheckpointError, ModelError
from inkstone.files import MANIFEST
from inkstone.models import _markov
from inkstone.models._suffixes import Suffixes
from inkstone.models.hmm import Config, Model

SENTENCES = [
    ["The", "dog", "barks", "at", "the", "old", "cat"],
    ["A", "cat", "sleeps"],
    ["Rome", "sleeps", "at", "night"],
    ["the", "old", "dog", "sleeps"],
    ["Old", "dogs", "bark"],
]
TAGS = [
    ["D", "N", "V", "P", "D", "A", "N"],
    ["D", "N", "V"],
    ["E", "V", "P", "N"],
    ["D", "A", "N", "V"],
    ["A", "N", "V"],
]
WORD = st.sampled_from(["the", "The", "cat", "dog", "old", "bark", "barks", "Xylophone", "zzz"])


def _model(**config: Any) -> Model:
    return Model(Config(**config)).fit(SENTENCES, TAGS)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(WORD, min_size=1, max_size=4), st.sampled_from([2, 3]), st.booleans(),
    st.sampled_from([0, 3]),
)  # fmt: skip
def test_viterbi_and_marginals_equal_brute_force(
    words: list[str], order: int, capitalization: bool, suffix_length: int
) -> None:
    model = _model(order=order, capitalization=capitalization, suffix_length=suffix_length)
    paths = list(itertools.product(model.tags, repeat=len(words)))
    scores = np.array([model.log_prob(words, path) for path in paths])
    tagged = model.tag([words])[0]
    assert model.log_prob(words, tagged) == pytest.approx(scores.max())
    assert tuple(tagged) in {paths[i] for i in np.flatnonzero(scores > scores.max() - 1e-9)}
    table = model.posteriors([words])[0]
    p = np.exp(scores - np.logaddexp.reduce(scores))
    for t, column in itertools.product(range(len(words)), range(len(model.tags))):
        total = sum(p[i] for i, path in enumerate(paths) if path[t] == model.tags[column])
        assert table[t, column] == pytest.approx(total, abs=1e-9)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_best_path_on_any_lattice(seed: int, n_states: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    transitions = rng.normal(size=(n_states + 1,) * 3)
    sizes = rng.integers(1, n_states + 1, size=length)
    candidates = [rng.permutation(n_states)[:k] for k in sizes]
    emissions = [rng.normal(size=k) for k in sizes]

    def score(choice: tuple[int, ...]) -> float:
        states = [n_states, n_states, *(int(c[i]) for c, i in zip(candidates, choice, strict=True))]
        steps = zip(states, states[1:], [*states[2:], n_states], strict=False)
        return sum(transitions[x] for x in steps) + sum(
            e[i] for e, i in zip(emissions, choice, strict=True)
        )

    every = list(itertools.product(*map(range, sizes)))
    best = max(every, key=score)
    path, value = _markov.best_path(transitions, candidates, emissions)
    assert value == pytest.approx(score(best))
    assert path == [int(c[i]) for c, i in zip(candidates, best, strict=True)]
    rows, total = _markov.marginals(transitions, candidates, emissions)
    assert total == pytest.approx(np.logaddexp.reduce([score(x) for x in every]))
    assert all(row.sum() == pytest.approx(1) for row in rows)


@pytest.mark.parametrize("order", [2, 3])
def test_interpolation_is_the_algorithm_of_figure_1(order: int) -> None:
    rng = np.random.default_rng(0)
    size = 4  # three states and the boundary
    grams = Counter[tuple[int, ...]]()
    for _ in range(30):
        row = [3, 3, *rng.choice(3, p=[0.6, 0.3, 0.1], size=rng.integers(1, 6)).tolist(), 3]
        grams.update(zip(row, row[1:], row[2:], strict=False))
    table = np.zeros((size,) * 3)
    for gram, n in grams.items():
        table[gram] = n

    def f(*key: int | None) -> int:  # None: any
        return sum(
            n for g, n in grams.items()
            if all(k in (None, x) for k, x in zip(key, g, strict=True))
        )  # fmt: skip

    def share(above: int, below: int) -> float:
        return above / below if below > 0 else 0.0

    total = f(None, None, None)
    shares = [0.0, 0.0, 0.0]
    for (a, b, c), n in grams.items():
        cases = [
            share(f(None, None, c) - 1, total - 1),
            share(f(None, b, c) - 1, f(None, b, None) - 1),
            share(n - 1, f(a, b, None) - 1),
        ][:order]
        shares[cases.index(max(cases))] += n
    shares = [x / total for x in shares]
    p, got = _markov.interpolate(table, order)
    assert got == pytest.approx(shares) and min(got[:order]) > 0
    np.testing.assert_allclose(p.sum(-1), 1)
    for (a, b, c), n in grams.items():
        expected = shares[0] * f(None, None, c) / total
        expected += shares[1] * f(None, b, c) / f(None, b, None)
        expected += shares[2] * n / f(a, b, None)
        assert p[a, b, c] == pytest.approx(expected)


def test_endings_by_hand() -> None:
    prior = np.array([0.5, 0.3, 0.2])
    theta = math.sqrt(((0.5 - 1 / 3) ** 2 + (0.3 - 1 / 3) ** 2 + (0.2 - 1 / 3) ** 2) / 2)
    words = [("bark", {0: 1}), ("park", {1: 3}), ("Mark", {2: 5})]
    suffixes = Suffixes(words, prior, length=2)
    no_letter = (np.array([1, 3, 0]) / 4 + theta * prior) / (1 + theta)
    k = (np.array([1, 3, 0]) / 4 + theta * no_letter) / (1 + theta)
    rk = (np.array([1, 3, 0]) / 4 + theta * k) / (1 + theta)
    np.testing.assert_allclose(suffixes.probabilities("stork"), rk)
    np.testing.assert_allclose(suffixes.probabilities("ask"), k)
    np.testing.assert_allclose(suffixes.probabilities("x"), no_letter)
    capital = prior
    for _ in range(3):  # no letter, k, rk
        capital = (np.array([0, 0, 1]) + theta * capital) / (1 + theta)
    np.testing.assert_allclose(suffixes.probabilities("York"), capital)
    assert suffixes.probabilities("stork").sum() == pytest.approx(1)


def test_it_tags_what_it_has_seen_and_what_it_has_not() -> None:
    model = _model()
    assert model.tag(SENTENCES) == TAGS
    assert model.tag([["the", "old", "light", "sleeps"], [], ["Venice", "sleeps"]]) == [
        ["D", "A", "N", "V"], [], ["E", "V"],
    ]  # fmt: skip
    assert model.posteriors([[]])[0].shape == (0, 6)
    assert model.log_prob(["the"], ["V"]) == -math.inf
    assert _model(suffix_length=0, rare_count=0).tag([["unseen"]])[0][0] in model.tags


def test_a_word_of_a_shape_that_was_never_seen() -> None:
    model = Model().fit([["a", "b"]], [["X", "Y"]])
    assert model.tag([["A", "b"]])[0][1] == "Y"


@pytest.mark.parametrize("config", [{}, {"order": 2, "capitalization": False}])
def test_save_and_load(config: dict[str, Any], tmp_path: Path) -> None:
    sentences, tags = [*SENTENCES, ["半", "\ud83d"]], [*TAGS, ["N", "N"]]
    model = Model(Config(**config)).fit(sentences, tags)
    model.save(tmp_path / "model")
    again = Model.load(tmp_path / "model")
    assert again.tags == model.tags and again.config == model.config
    text = [["the", "Oldest", "barking", "at", "半"]]
    assert np.array_equal(again.posteriors(text)[0], model.posteriors(text)[0])
    assert again.tag(text) == model.tag(text)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    _model().save(folder)
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


def _many_states(arrays: dict[str, np.ndarray]) -> None:
    n = 500
    ring = np.arange(n)
    arrays["states"] = np.stack([np.zeros(n, np.int64), ring * 0], 1)
    arrays["states"][:, 0] = ring
    arrays["trigrams"] = np.stack([ring, np.roll(ring, 1), ring], 1)
    arrays["trigrams"] = np.concatenate([arrays["trigrams"], [[0, n, n]]])
    arrays["trigram_counts"] = np.ones(n + 1, np.int64)
    arrays["word_states"], arrays["word_counts"] = ring, np.ones(n, np.int64)
    arrays["word_starts"][-1] = n


def _many_tags(config: dict[str, Any]) -> None:
    config["tags"] = [str(i) for i in range(500)]


def _both(*edits: Any) -> Any:
    def edit(folder: Path) -> None:
        for each in edits:
            each(folder)

    return edit


HOSTILE = {
    "another type": (_edit_json("config.json", lambda c: c.update(model_type="x")), "type 'x'"),
    "no tags": (_edit_json("config.json", lambda c: c.update(tags=[])), "tags"),
    "equal tags": (_edit_json("config.json", lambda c: c.update(tags=["N"] * 6)), "distinct"),
    "fewer tags": (_edit_json("config.json", lambda c: c["tags"].pop()), "outside the tags"),
    "order 9": (_edit_json("config.json", lambda c: c["settings"].update(order=9)), "settings"),
    "words": (_edit_json("lexicon.json", lambda c: c.update(words="abc")), "words"),
    "a word more": (_edit_json("lexicon.json", lambda c: c["words"].append("z")), "lexicon"),
    "state of no tag": (_assign("states", (0, 0), 99), "outside the tags"),
    "state twice": (_assign("states", 1, np.array([0, 0])), "twice"),
    "trigram out of range": (_assign("trigrams", (0, 0), 99), "do not fit"),
    "negative trigram": (_assign("trigrams", (0, 0), -1), "do not fit"),
    "count 0": (_assign("trigram_counts", 0, 0), "out of range"),
    "huge count": (_assign("trigram_counts", 0, 2**62), "out of range"),
    "another count": (_assign("word_counts", 0, 7), "differently"),
    "starts fall": (_assign("word_starts", 1, 99), "tile"),
    "starts elsewhere": (_assign("word_starts", 0, 1), "tile"),
    "word of no state": (_assign("word_states", 0, 99), "out of range"),
    "flat trigrams": (_edit_arrays(lambda a: a.update(trigrams=a["trigrams"].ravel())), "triples"),
    "flat states": (_edit_arrays(lambda a: a.update(states=a["states"].ravel())), "pairs"),
    "counts in two dimensions": (
        _edit_arrays(lambda a: a.update(word_counts=a["word_counts"][None])), "lexicon",
    ),
    "other dtype": (_edit_arrays(lambda a: a.update(states=a["states"].astype("i4"))), "int32"),
    "missing array": (_edit_arrays(lambda a: a.pop("states")), "lacks the array 'states'"),
    "too many states": (
        _both(_edit_json("config.json", _many_tags), _edit_arrays(_many_states)), "too many",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_folders_are_refused(case: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    edit, message = HOSTILE[case]
    edit(folder)
    with pytest.raises(CheckpointError):
        Model.load(folder)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        Model.load(folder)


def test_users_mistakes_are_named() -> None:
    with pytest.raises(ModelError, match="1 sentences, but tags of 0"):
        Model().fit([["a"]], [])
    with pytest.raises(ModelError, match="sentence 1: 2 tokens, but 1 tags"):
        Model().fit([["a"], ["a", "b"]], [["X"], ["X"]])
    with pytest.raises(ModelError, match="at least one tagged token"):
        Model().fit([[]], [[]])
    with pytest.raises(ModelError, match="learned nothing"):
        Model().tag([["a"]])
    with pytest.raises(ModelError, match="1 tokens, but 2 tags"):
        _model().log_prob(["a"], ["D", "N"])
    with pytest.raises(ModelError, match="406 tags make 406 states: too many"):
        words = [str(i) for i in range(406)]
        Model().fit([words], [words])
