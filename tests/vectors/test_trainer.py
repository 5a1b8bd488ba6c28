"""vectors/trainer.py and hogwild.py: one worker is exact, also across an interruption."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone.errors import CheckpointError
from inkstone.models import fasttext, glove, word2vec
from inkstone.vectors import compiled, hogwild
from inkstone.vectors.trainer import Trainer
from inkstone.vectors.vocabulary import Rows, Vocabulary

needs_numba = pytest.mark.skipif(not compiled.available(), reason="needs the extra `vectors`")
pytestmark = needs_numba
Words = tuple[Vocabulary, Rows]
SMALL: dict[str, Any] = {"d_model": 8, "workers": 1, "epochs": 3}


def trainer(name: str, words: Words, folder: Path, **changed: Any) -> Trainer:
    given = SMALL | changed
    if name == "glove":
        config = glove.Config(**given)
        return glove.Model(config, words[0], glove.count_pairs(config, *words, folder))
    module = {"word2vec": word2vec, "fasttext": fasttext}[name]
    more = {"buckets": 100} if name == "fasttext" else {}
    return module.Model(module.Config(**given, **more), *words)  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(word2vec, "CHUNK", 1000)
    monkeypatch.setattr(glove, "CHUNK", 40)


@pytest.mark.parametrize("name", ["word2vec", "fasttext", "glove"])
def test_a_run_that_paused_ends_in_the_same_bits(
    name: str, two_subjects: Words, tmp_path: Path
) -> None:
    whole = trainer(name, two_subjects, tmp_path)
    assert whole.chunks > 2
    whole.advance()
    assert whole.done == whole.total and np.isfinite(whole.loss())
    first = trainer(name, two_subjects, tmp_path)
    first.advance(to=whole.chunks + 1)
    assert first.done == whole.chunks + 1
    second = trainer(name, two_subjects, tmp_path)
    second.load_state(first.state(), {k: v.copy() for k, v in first.arrays.items()})
    second.advance()
    for key, value in whole.arrays.items():
        assert (second.arrays[key] == value).all(), key
        assert not (first.arrays[key] == value).all(), key
    assert (second.vectors().matrix == whole.vectors().matrix).all()


def test_compiled_chunks_equal_plain_ones(two_subjects: Words, tmp_path: Path) -> None:
    fast, slow = (trainer("word2vec", two_subjects, tmp_path) for _ in range(2))
    slow.fast = False
    for made in (fast, slow):
        made.advance(to=2)
    for key, value in fast.arrays.items():
        np.testing.assert_allclose(value, slow.arrays[key], atol=2e-5)


@pytest.mark.parametrize(
    "changed", [{"seed": 7}, {"chunks": 1}, {"done": -1}, {"done": 10**9}, {"done": True}, {"x": 1}]
)
def test_a_state_of_something_else(
    changed: dict[str, Any], two_subjects: Words, tmp_path: Path
) -> None:
    made = trainer("word2vec", two_subjects, tmp_path)
    before = {k: v.copy() for k, v in made.arrays.items()}
    with pytest.raises(CheckpointError, match="other data or settings"):
        made.load_state(made.state() | changed, made.arrays)
    shorter = {k: v[:-1] for k, v in made.arrays.items()}
    for arrays, message in ((shorter, "of shape"), ({}, "holds"), ({"inputs": 0}, "holds")):
        with pytest.raises(CheckpointError, match=message):
            made.load_state(made.state(), arrays)  # type: ignore[arg-type]
    assert all((made.arrays[k] == v).all() for k, v in before.items())


def test_measuring_the_rate_changes_nothing(two_subjects: Words, tmp_path: Path) -> None:
    made = trainer("word2vec", two_subjects, tmp_path)
    before = {k: v.copy() for k, v in made.arrays.items()}
    assert made.rate(0.01) > 0 and made.done == 0
    assert all((made.arrays[k] == v).all() for k, v in before.items())


def test_several_workers_do_every_chunk_once() -> None:
    seen, lock = list[int](), threading.Lock()

    def work(number: int) -> None:
        with lock:
            seen.append(number)

    assert hogwild.run(work, 3, 90, workers=4, pause=lambda done: False) == 90
    assert sorted(seen) == list(range(3, 90))


def test_a_pause_ends_after_whole_chunks() -> None:
    seen, started = list[int](), threading.Event()

    def work(number: int) -> None:
        started.set()
        gate.wait()
        seen.append(number)

    gate = threading.Event()

    def pause(done: int) -> bool:
        started.wait()
        gate.set()
        return True

    next_one = hogwild.run(work, 0, 10**9, workers=2, pause=pause)
    assert sorted(seen) == list(range(next_one))


def test_an_error_in_a_thread_is_the_callers() -> None:
    def work(number: int) -> None:
        if number == 5:
            raise ValueError("chunk 5")

    with pytest.raises(ValueError, match="chunk 5"):
        hogwild.run(work, 0, 10**9, workers=3, pause=lambda done: False)
    with pytest.raises(KeyboardInterrupt):
        hogwild.run(lambda _: None, 0, 10**9, workers=2, pause=_interrupt)


def _interrupt(done: int) -> bool:
    raise KeyboardInterrupt
