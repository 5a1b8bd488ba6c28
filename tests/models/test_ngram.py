"""Kneser-Ney against a textbook version with dictionaries, and against itself."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from inkstone import registry
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import MANIFEST
from inkstone.models.ngram import FALLBACK_DISCOUNTS, Config, Model

EOS = 0


class Textbook:
    """Chen and Goodman (1998), section 4.1.6, one n-gram at a time and by recursion."""

    def __init__(self, documents: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        raw: list[Counter] = [Counter() for _ in range(order + 1)]
        for document in documents:
            line = (EOS, *document, EOS)
            for n in range(1, order + 1):
                for i in range(len(line) - n + 1):
                    if n == 1 and i == 0:
                        continue  # the start is never predicted
                    raw[n][line[i : i + n]] += 1
        self.adjusted: list[dict] = [{} for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in raw[n].items():
                if n == order or (n > 1 and gram[0] == EOS):
                    self.adjusted[n][gram] = count
                else:
                    self.adjusted[n][gram] = sum(1 for longer in raw[n + 1] if longer[1:] == gram)
        self.discount = [self._discounts(n) for n in range(order + 1)]
        self.followers: list[dict] = [defaultdict(list) for _ in range(order + 1)]
        for n in range(1, order + 1):
            for gram, count in self.adjusted[n].items():
                self.followers[n][gram[:-1]].append(count)

    def _discounts(self, n: int) -> list[float]:
        t = [0] + [sum(1 for a in self.adjusted[n].values() if a == k) for k in (1, 2, 3, 4)]
        if all(t[1:4]):
            y = t[1] / (t[1] + 2 * t[2])
            d = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
            if all(0 < value <= k for k, value in enumerate(d, 1)):
                return [0.0, *d]
        return [0.0, *FALLBACK_DISCOUNTS]

    def p(self, word: int, context: tuple[int, ...]) -> float:
        context = context[-(self.order - 1) :] if self.order > 1 else ()
        n = len(context) + 1
        lower = self.p(word, context[1:]) if context else 1 / self.vocab_size
        counts = self.followers[n].get(context)
        if not counts:
            return lower
        total = sum(counts)
        a = self.adjusted[n].get((*context, word), 0)
        d = self.discount[n]
        freed = sum(d[min(count, 3)] for count in counts)
        return (a - d[min(a, 3)]) / total + freed / total * lower


def _documents(seed: int, count: int, vocab_size: int, length: int = 12) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(1, vocab_size)
    weights /= weights.sum()
    return [
        (1 + rng.choice(vocab_size - 1, size=rng.integers(0, length), p=weights)).tolist()
        for _ in range(count)
    ]


def _stream(documents: list[list[int]]) -> np.ndarray:
    return np.array([token for document in documents for token in (*document, EOS)])


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [3, 60])
def test_equals_the_textbook(order: int, count: int) -> None:
    vocab_size = 9
    documents = _documents(order, count, vocab_size)
    model = Model(Config(vocab_size=vocab_size, order=order, boundary_id=EOS))
    model.fit(_stream(documents))
    slow = Textbook(documents, vocab_size, order)
    held_out = _documents(100 + order, 20, vocab_size)
    expected = []
    for document in held_out:
        line = (EOS, *document, EOS)
        expected += [math.log(slow.p(line[i], line[:i])) for i in range(1, len(line))]
    np.testing.assert_allclose(model.log_probs(_stream(held_out)), expected, rtol=1e-10)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    held_out=st.lists(st.integers(0, 7), max_size=30),
    order=st.integers(1, 6),
    boundary=st.sampled_from([None, 0]),
)
def test_every_token_has_some_probability(
    ids: list[int], held_out: list[int], order: int, boundary: int | None
) -> None:
    model = Model(Config(vocab_size=8, order=order, boundary_id=boundary)).fit(np.array(ids))
    for stream in (ids, held_out):
        scores = model.log_probs(np.array(stream, dtype=np.int64))
        assert np.isfinite(scores).all() and (scores <= 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 6), min_size=1, max_size=200),
    context=st.lists(st.integers(0, 7), max_size=8),
    order=st.integers(1, 6),
    boundary=st.sampled_from([None, 0]),
)
def test_probabilities_sum_to_one(
    ids: list[int], context: list[int], order: int, boundary: int | None
) -> None:
    model = Model(Config(vocab_size=8, order=order, boundary_id=boundary)).fit(np.array(ids))
    p = model.next_probs(np.array(context, dtype=np.int64))
    assert (p > 0).all()
    assert p.sum() == pytest.approx(1.0, abs=1e-12)


def test_normalised_on_a_larger_vocabulary() -> None:
    rng = np.random.default_rng(0)
    ids = rng.zipf(1.3, 50_000) % 1000
    model = Model(Config(vocab_size=1000, boundary_id=0)).fit(ids)
    for start in rng.integers(0, 49_000, 20):
        assert model.next_probs(ids[start : start + 4]).sum() == pytest.approx(1.0, abs=1e-10)
    for _ in range(10):  # almost surely never seen
        assert model.next_probs(rng.integers(0, 1000, 6)).sum() == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("boundary", [EOS, None])
def test_scoring_a_stream_equals_asking_token_by_token(boundary: int | None) -> None:
    documents = _documents(7, 40, 12)
    model = Model(Config(vocab_size=12, order=4, boundary_id=boundary)).fit(_stream(documents))
    stream = _stream(_documents(8, 5, 12))
    singly = [math.log(model.next_probs(stream[:i])[stream[i]]) for i in range(len(stream))]
    np.testing.assert_allclose(model.log_probs(stream), singly, rtol=1e-10)


def test_contexts_do_not_cross_documents() -> None:
    model = Model(Config(vocab_size=12, order=5, boundary_id=EOS))
    model.fit(_stream(_documents(1, 50, 12)))
    after_one = model.next_probs(np.array([3, 4, EOS]))
    np.testing.assert_array_equal(after_one, model.next_probs(np.array([], dtype=np.int64)))


def test_longer_contexts_help_where_there_is_something_to_learn() -> None:
    pattern = np.tile([1, 2, 1, 3, 1, 2, 1, 4], 500)
    losses = [
        -Model(Config(vocab_size=8, order=n)).fit(pattern[:3000]).log_probs(pattern[3000:]).mean()
        for n in (1, 2, 3, 5)
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.05


def test_a_large_vocabulary_does_not_overflow() -> None:
    v = 1 << 22
    ids = np.random.default_rng(0).integers(0, v, 2000, dtype=np.uint32)
    model = Model(Config(vocab_size=v, order=6)).fit(ids)
    assert np.isfinite(model.log_probs(ids)).all()
    assert model.next_probs(ids[5:10]).sum() == pytest.approx(1.0, abs=1e-9)


def test_mistakes_are_named() -> None:
    config = Config(vocab_size=10, order=3)
    with pytest.raises(ModelError, match="counted nothing"):
        Model(config).log_probs(np.array([1]))
    with pytest.raises(ModelError, match="at least one token"):
        Model(config).fit(np.array([], dtype=np.int64))
    with pytest.raises(ModelError, match="0 to 9"):
        Model(config).fit(np.array([1, 10]))
    with pytest.raises(ModelError, match="0 to 9"):
        Model(config).fit(np.array([1])).log_probs(np.array([-1]))
    with pytest.raises(ModelError, match="boundary_id 10"):
        Model(Config(vocab_size=10, boundary_id=10))
    with pytest.raises(ModelError, match="flat"):
        Model(config).fit(np.zeros((2, 2), dtype=np.int64))


def test_is_found_in_the_folder() -> None:
    assert registry.load("models", "ngram").KIND == "ngram"


def test_scores_an_empty_stream() -> None:
    model = Model(Config(vocab_size=4, order=5, boundary_id=0)).fit(np.array([1, 2, 0]))
    assert model.log_probs(np.array([], dtype=np.int64)).shape == (0,)
    assert len(model.log_probs(np.array([1]))) == 1


@pytest.fixture(scope="module")
def counted() -> Model:
    rng = np.random.default_rng(0)
    return Model(Config(vocab_size=9, order=3, boundary_id=EOS)).fit(rng.integers(0, 9, 400))


@pytest.fixture(scope="module")
def saved(counted: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    counted.save(folder)
    return folder


def test_save_and_load(counted: Model, saved: Path) -> None:
    again = Model.load(saved)
    assert again.config == counted.config and again.n_grams == counted.n_grams
    ids = np.random.default_rng(1).integers(0, 9, 50)
    assert np.array_equal(again.log_probs(ids), counted.log_probs(ids))
    assert np.array_equal(again.next_probs(ids[:3]), counted.next_probs(ids[:3]))
    with pytest.raises(ModelError, match="counted nothing"):
        Model(counted.config).save("never")


def test_samples_follow_the_probabilities() -> None:
    model = Model(Config(vocab_size=5, order=2, boundary_id=EOS)).fit(np.array([1, 2, 3, 0] * 500))
    assert model.sample(np.array([1]), 10, stop_id=EOS) == [2, 3]
    assert len(model.sample(np.array([1]), 10)) == 10
    drawn = [model.sample(np.array([4]), 1, seed=seed)[0] for seed in range(3000)]
    shares = np.bincount(drawn, minlength=5) / len(drawn)
    assert np.abs(shares - model.next_probs(np.array([4]))).max() < 0.04


def _json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        change(content)
        (folder / "config.json").write_text(json.dumps(content))

    return edit


def _arrays(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return edit


HOSTILE = {
    "another type": (_json(lambda c: c.update(model_type="gpt2")), "type 'gpt2'"),
    "order 99": (_json(lambda c: c["settings"].update(order=99)), "settings"),
    "boundary outside": (_json(lambda c: c["settings"].update(boundary_id=9)), "settings"),
    "larger vocabulary": (_json(lambda c: c["settings"].update(vocab_size=10)), "one count"),
    "smaller vocabulary": (_json(lambda c: c["settings"].update(vocab_size=8)), "out of range"),
    "longer order": (_json(lambda c: c["settings"].update(order=4)), "lacks the array"),
    "key out of range": (_arrays(lambda a: a["keys.3"].__setitem__(-1, 2**60)), "out of range"),
    "negative key": (_arrays(lambda a: a["keys.2"].__setitem__(0, -1)), "out of range"),
    "keys out of order": (_arrays(lambda a: a["keys.2"].__setitem__(0, 5)), "order"),
    "negative count": (_arrays(lambda a: a["counts.2"].__setitem__(0, -1)), "count is out"),
    "huge count": (_arrays(lambda a: a["counts.1"].__setitem__(0, 2**62)), "count is out"),
    "fewer counts": (_arrays(lambda a: a.update({"counts.2": a["counts.2"][1:]})), "one count"),
    "a table": (_arrays(lambda a: a.update({"keys.2": a["keys.2"][None]})), "one count"),
}


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
