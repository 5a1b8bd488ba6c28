"""Word vectors through the whole pipeline: from text to a folder, and a run that was cut off."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inkstone as ink
from inkstone import pipeline, recipe
from inkstone.errors import DataError, InkstoneError, ModelError, RunError, UsageError
from inkstone.pipeline import vectors as runs
from inkstone.training.signals import TrainingInterrupted
from inkstone.vectors import compiled
from inkstone.vectors.table import Vectors

pytestmark = pytest.mark.skipif(not compiled.available(), reason="needs the extra `vectors`")
SMALL = ["model.d_model=8", "model.workers=1", "model.epochs=3"]
RECIPES = ["word2vec-text8", "glove-text8", "fasttext-text8"]


def settings(name: str, *more: str) -> list[str]:
    return [*SMALL, *(["model.buckets=500"] if name.startswith("fast") else []), *more]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "texts").mkdir()
    random = np.random.default_rng(0)
    sentence = "Stone river moss water, rain bank New York drum flute."
    words = np.array(sentence.split())
    for number in range(40):
        text = " ".join(random.choice(words, size=300)) + f" New York {number}"
        (folder / "texts" / f"{number}.txt").write_text(text)
    (folder / "analogies").write_text(": x\nstone river moss water\nstone river moss missing\n")
    (folder / "pairs").write_text("stone\triver\t3\nmoss\twater\t2\nrain\tbank\t1\n")
    return folder


def train(root: Path, name: str, run: Path, *more: str) -> dict[str, Any]:
    chosen = recipe.load(name, settings(name, *more)).with_data([root / "texts"])
    return pipeline.train(chosen, run, cache=root / "cache")


@pytest.fixture(scope="module", params=RECIPES)
def finished(root: Path, request: pytest.FixtureRequest) -> tuple[str, Path, dict[str, Any]]:
    name: str = request.param
    tests = json.dumps([str(root / "analogies"), str(root / "pairs")])
    run = root / name
    return name, run, train(root, name, run, f"evaluation.vectors={tests}")


def test_a_run_ends_in_vectors_with_scores(finished: tuple[str, Path, dict[str, Any]]) -> None:
    name, run, result = finished
    family = name.removesuffix("-text8")
    made = ink.load(run)
    assert isinstance(made, Vectors) and made.matrix.shape == (len(made), 8)
    assert {"stone", "river", "drum"} <= set(made.words) and "Stone" not in made
    assert made.counts is not None and (np.diff(made.counts) <= 0).all()
    assert result["words"] == len(made) and result["epochs"] == 3
    assert result["scores"]["analogies"]["asked"] == 1
    assert result["scores"]["pairs"]["pairs"] == 3
    assert len(result["neighbors"]) > 0 and np.isfinite(result["loss"])
    assert json.loads((run / "result.json").read_text()) == json.loads(json.dumps(result))
    info = json.loads((run / "model" / "inkstone.json").read_text())
    assert info["family"] == family and info["recipe"]["data"]["path"] == ["texts"]
    assert set(info["scores"]) == {"analogies", "pairs"}
    assert not (run / "state").exists()
    if family == "fasttext":
        assert np.isfinite(made["stoneriver"]).all()


def interrupted(root: Path, name: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that got a signal, or was killed, after some chunks."""

    class Stop(runs.Signals):
        @property
        def received(self) -> int | None:  # type: ignore[override]
            return 15

        @received.setter
        def received(self, value: int | None) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(runs, "Signals", Stop)
        with pytest.raises(TrainingInterrupted):
            train(root, name, run)


def in_turn(work: Any, first: int, last: int, *, pause: Any, **_: int) -> int:
    """`hogwild.run` without threads, which might be through before anybody asks for a pause."""
    for number in range(first, last):
        work(number)
        if pause(number + 1):
            return number + 1
    return last


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inkstone.models.word2vec.CHUNK", 500)
    monkeypatch.setattr("inkstone.models.glove.CHUNK", 20)
    monkeypatch.setattr("inkstone.vectors.hogwild.run", in_turn)


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_was_cut_off_ends_in_the_same_vectors(
    name: str, root: Path, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(root, name, whole)
    interrupted(root, name, run, monkeypatch)
    state = json.loads((run / "state" / "state.json").read_text())
    assert 0 < state["done"] < state["epochs"] * state["chunks"]
    assert not (run / "model").exists()
    result = pipeline.resume(run, cache=root / "cache")
    assert (ink.load(run).matrix == ink.load(whole).matrix).all()
    assert pipeline.resume(run, cache=root / "cache") == result


def test_a_state_that_does_not_fit(
    root: Path, tmp_path: Path, small_chunks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    interrupted(root, RECIPES[0], run, monkeypatch)
    arrays = run / "state" / "arrays.safetensors"
    raw = bytearray(arrays.read_bytes())
    raw[-1] ^= 1
    arrays.write_bytes(raw)
    with pytest.raises(InkstoneError, match="SHA-256"):
        pipeline.resume(run, cache=root / "cache")
    raw[-1] ^= 1
    arrays.write_bytes(raw)
    (root / "texts" / "more.txt").write_text("stone " * 50)
    try:
        with pytest.raises(RunError, match="its data changed"):
            pipeline.resume(run, cache=root / "cache")
    finally:
        (root / "texts" / "more.txt").unlink()


def test_mistakes_are_told_before_the_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no file"):
        train(root, RECIPES[0], tmp_path / "a", 'evaluation.vectors=["nowhere"]')
    with pytest.raises(ModelError, match="no word is frequent enough"):
        train(root, RECIPES[0], tmp_path / "b", "model.min_count=1000000")
    with pytest.raises(RunError, match="already holds a run"):
        done = tmp_path / "c"
        train(root, RECIPES[0], done)
        train(root, RECIPES[0], done)
    with pytest.raises(ModelError, match="training diverged"):
        train(root, RECIPES[0], tmp_path / "d", "model.lr=10.0", "model.epochs=300")
    assert not (tmp_path / "d" / "model").exists()


def test_phrases_get_a_vector(root: Path, tmp_path: Path) -> None:
    train(root, RECIPES[0], tmp_path / "run", "words.phrases=1", "words.phrase_threshold=1.05")
    made: Vectors = ink.load(tmp_path / "run")
    assert "new_york" in made


def test_minutes_buy_epochs(root: Path, tmp_path: Path) -> None:
    chosen = recipe.load(None, ["model.family=word2vec", "model.d_model=8", "tokenizer.kind=word",
                                "training.minutes=0.002", "model.workers=1"])  # fmt: skip
    result = pipeline.train(
        chosen.with_data([root / "texts"]), tmp_path / "run", cache=root / "cache"
    )
    assert result["epochs"] >= 1
    assert "minutes at" in (tmp_path / "run" / "recipe.toml").read_text()


@pytest.mark.parametrize("kind, split", [("word", "jieba"), ("bpe", "none")])
def test_chinese(kind: str, split: str, shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    path = shared_data / "chnsenticorp-htl" / "train.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[:600]
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines), encoding="utf-8")
    chosen = recipe.load(
        "word2vec-text8",
        [f"words.split={split}", f"tokenizer.kind={kind}", "tokenizer.vocab_size=3000",
         "model.d_model=16", "model.epochs=8", "model.workers=1", "text.field=text"],
    )  # fmt: skip
    pipeline.train(
        chosen.with_data([tmp_path / "reviews.jsonl"]), tmp_path / "run", cache=tmp_path / "cache"
    )
    made: Vectors = ink.load(tmp_path / "run")
    assert {"酒店", "房间", "早餐", "服务"} <= set(made.words)
    near = made.most_similar("酒店", top=50)
    assert sum("\u4e00" <= n.word[0] <= "\u9fff" for n in near) > 30
    with pytest.raises(DataError):
        (tmp_path / "empty").mkdir()
        pipeline.train(chosen.with_data([tmp_path / "empty"]), tmp_path / "r", cache=tmp_path / "c")
