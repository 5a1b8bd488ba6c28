"""`compress` with pruning, distilling and the training that either needs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import inkstone as ink
from inkstone import api
from inkstone.checkpoint import read_tensors
from inkstone.errors import DataError, ModelError, UsageError
from inkstone.pipeline.observer import Observer
from inkstone.training.signals import TrainingInterrupted

QUICK = {"training.tokens_per_step": 256}


class Watched(Observer):
    """Remembers stages, and the time left that training told."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.remaining: list[float] = []

    def stage_done(self, name: str, line: str, seconds: float, *, reused: bool = False) -> None:
        self.stages.append(name)

    def step(self, info: Any) -> None:
        self.remaining.append(info.remaining_s)


def _hashes(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _blocks(folder: Path) -> list[torch.Tensor]:
    """The matrices of the layers, as they stand on the disk."""
    tensors = read_tensors(folder / "model.safetensors")
    return [t for n, t in tensors.items() if ".layers." in n and t.ndim == 2]


@pytest.mark.parametrize("by", ["magnitude", "movement", "2:4"])
def test_zeros_are_trained_around_and_saved(poet: Path, by: Any, tmp_path: Path) -> None:
    texts, before, told = poet / "texts.txt", _hashes(poet / "run"), Watched()
    done = api.compress(
        poet / "run", None, tmp_path / "sparse", data=texts, evaluate=texts, prune=0.5,
        prune_by=by, steps=12, settings=QUICK, observer=told,
    )  # fmt: skip
    for tensor in _blocks(tmp_path / "sparse"):
        assert int((tensor == 0).sum()) == tensor.numel() // 2
        if by == "2:4":
            assert ((tensor == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert done.shrunk["pruned"]["zeros"] == pytest.approx(0.5, abs=1e-4)
    assert done.after.zeros > 0.4 > done.before.zeros
    assert done.shrunk["trained"]["steps"] == 12 and "train" in told.stages
    assert told.remaining[-1] >= 0
    assert _hashes(poet / "run") == before
    small = ink.load(tmp_path / "sparse")
    assert small.info["compressed"]["pruned"]["by"] == by and "scores" not in small.info
    assert small.perplexity(texts).perplexity == pytest.approx(done.after.scores["perplexity"])
    assert [p.name for p in tmp_path.iterdir()] == ["sparse"]


def test_training_wins_back_what_pruning_costs(poet: Path, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    both = [
        api.compress(
            poet / "run", None, tmp_path / name, data=texts, evaluate=texts, prune=0.7, **options
        ).after.scores["perplexity"]
        for name, options in {"at-once": {}, "slowly": {"steps": 40, "settings": QUICK}}.items()
    ]
    assert both[1] < 0.9 * both[0]


def test_pruned_and_rounded(poet: Path, tmp_path: Path) -> None:
    done = api.compress(poet / "run", "int8", tmp_path / "small", prune=0.5)
    assert done.bits and done.after.zeros > 0.4
    assert done.after.disk_bytes < 0.5 * done.before.disk_bytes
    assert "trained" not in done.shrunk


@pytest.mark.parametrize("by", ["layers", "heads"])
def test_a_smaller_network(poet: Path, by: Any, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    done = api.compress(
        poet / "run", None, tmp_path / "small", data=texts, evaluate=texts, prune=0.5,
        prune_by=by, steps=5, settings=QUICK,
    )  # fmt: skip
    small, large = ink.load(tmp_path / "small"), ink.load(poet / "run")
    name = f"n_{by}"
    assert 2 * getattr(small.model.config, name) == getattr(large.model.config, name)
    assert small.n_parameters == done.after.parameters < done.before.parameters
    assert small.info["recipe"]["model"][name] == getattr(small.model.config, name)
    assert small.info["parameters"] == small.n_parameters
    assert small.generate("the old", max_tokens=5).text


def test_a_student_of_a_language_model(poet: Path, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    done = api.compress(
        poet / "run", None, tmp_path / "student", data=texts, evaluate=texts,
        distill={"n_layers": 1, "d_model": 32, "n_heads": 1}, steps=60, settings=QUICK,
    )  # fmt: skip
    assert done.after.parameters < 0.5 * done.before.parameters
    config = ink.load(tmp_path / "student").model.config
    assert (config.d_model, config.head_dim, config.d_ff) == (32, 32, 128)
    assert done.after.scores["perplexity"] < 40  # of 320 words
    assert done.shrunk["distilled"]["temperature"] == 2.0


def test_a_student_of_a_classifier(critic: Path, tmp_path: Path) -> None:
    rows = critic / "rows.jsonl"
    done = api.compress(
        critic / "run", "int8", tmp_path / "student", data=rows, evaluate=rows,
        distill={"d_model": 32, "n_heads": 2}, steps=150, settings={"distill.alpha": 0.0},
    )  # fmt: skip
    assert done.after.scores["accuracy"] > 90  # by the teacher's word alone
    assert done.bits and done.shrunk["trained"]["unit"] == "examples"
    student = ink.load(tmp_path / "student")
    assert student.classify("the red cat sat on the river").label == "water"


def test_a_student_that_is_there(critic: Path, tmp_path: Path) -> None:
    rows = critic / "rows.jsonl"
    first = {"data": rows, "steps": 2, "distill": {"d_model": 32, "n_heads": 2}}
    api.compress(critic / "run", None, tmp_path / "first", **first)  # type: ignore[arg-type]
    again = api.compress(
        critic / "run", None, tmp_path / "again", data=rows, distill=tmp_path / "first", steps=2,
        prune=0.5,
    )  # fmt: skip
    assert again.after.parameters < again.before.parameters and again.after.zeros > 0.1


def test_a_pruned_classifier(critic: Path, tmp_path: Path) -> None:
    rows = critic / "rows.jsonl"
    done = api.compress(
        critic / "run", None, tmp_path / "sparse", data=rows, evaluate=rows, prune=0.5,
        prune_by="movement", steps=40,
    )  # fmt: skip
    assert done.shrunk["pruned"]["zeros"] == pytest.approx(0.5, abs=1e-3)
    assert "classifier" in done.shrunk["pruned"]["kept"]
    assert done.after.scores["accuracy"] > 60


def test_labels_that_the_model_does_not_know(critic: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    lines = [
        json.dumps({"text": f"{x} {n}", "label": x}) for n in range(20) for x in ("air", "land")
    ]
    other.write_text("\n".join(lines))
    with pytest.raises(DataError, match="'air', which the model does not know"):
        api.compress(critic / "run", None, tmp_path / "x", data=other, prune=0.5, steps=2)
    assert [p.name for p in tmp_path.iterdir()] == ["other.jsonl"]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "nothing is to be done"),
    "time for nothing": ({"minutes": 1}, "nothing to train for"),
    "all": ({"prune": 1.0}, "above 0 and below 1"),
    "unknown": ({"prune": 0.5, "prune_by": "size"}, "magnitude, movement, 2:4, heads, layers"),
    "2:4 of a third": ({"prune": 0.3, "prune_by": "2:4"}, "--prune 0.5 --prune-by 2:4"),
    "movement at rest": ({"prune": 0.5, "prune_by": "movement"}, "--minutes 10"),
    "training on nothing": ({"prune": 0.5, "steps": 3}, "add --data"),
    "layers unseen": ({"prune": 0.5, "prune_by": "layers"}, "add --data"),
    "no time for a student": ({"distill": {"n_layers": 1}, "data": "x"}, "needs training"),
    "no data for a student": ({"distill": {"n_layers": 1}, "steps": 3}, "add --data"),
    "two shapes": (
        {"distill": {"n_layers": 1}, "prune": 0.5, "prune_by": "layers", "steps": 3, "data": "x"},
        "both say which shape",
    ),
    "no time at all": ({"prune": 0.5, "minutes": 0, "data": "x"}, "above zero"),
    "a strange setting": (
        {"prune": 0.5, "steps": 3, "data": "x", "settings": {"trainin.lr": 1}}, "trainin.lr",
    ),
    "too much of the answers": (
        {"distill": {"n_layers": 1}, "steps": 3, "data": "x", "settings": {"distill.alpha": 2}},
        "distill.alpha",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", list(REFUSED))
def test_refusals(poet: Path, what: str, tmp_path: Path) -> None:
    options, words = REFUSED[what]
    with pytest.raises(UsageError, match=words):
        api.compress(poet / "run", None, tmp_path / "small", **options)
    assert not list(tmp_path.iterdir())


def test_shapes_that_a_student_cannot_have(poet: Path, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    for shape, words in {
        "n_layer": "n_layers", "vocab_size": "its teacher's", "n_heads": "multiple",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=words):
            api.compress(
                poet / "run", None, tmp_path / "x", data=texts, steps=2, distill={shape: 7}
            )


def test_heads_need_a_family_that_can_lose_them(critic: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="--prune-by layers"):
        api.compress(
            critic / "run", None, tmp_path / "x", data=critic / "rows.jsonl", prune=0.5,
            prune_by="heads",
        )  # fmt: skip
    with pytest.raises(UsageError, match="there is one only"):
        api.compress(
            critic / "run", None, tmp_path / "x", data=critic / "rows.jsonl", prune=0.5,
            prune_by="layers",
        )  # fmt: skip


def test_a_model_in_sixteen_bits_learns_in_thirty_two(poet: Path, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    api.compress(poet / "run", "bf16", tmp_path / "bf16")
    done = api.compress(
        tmp_path / "bf16", None, tmp_path / "sparse", data=texts, prune=0.5, steps=3,
        settings=QUICK,
    )  # fmt: skip
    tensors = _blocks(tmp_path / "sparse")
    assert all(t.dtype == torch.float32 for t in tensors)
    assert any(not torch.equal(t, t.bfloat16().float()) for t in tensors)
    assert done.after.disk_bytes > 1.9 * done.before.disk_bytes


class Stopping(Observer):
    """Sends a signal when training has begun."""

    def step(self, info: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_leaves_nothing_behind(poet: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted):
        api.compress(
            poet / "run", None, tmp_path / "x", data=poet / "texts.txt", prune=0.5, steps=500,
            settings=QUICK, observer=Stopping(),
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_an_unknown_part_is_named_before_training(poet: Path, tmp_path: Path) -> None:
    told = Watched()
    with pytest.raises(UsageError, match="nothing is called 'nose'"):
        api.compress(
            poet / "run", "int8", tmp_path / "x", data=poet / "texts.txt", prune=0.5, steps=3,
            keep=["nose"], observer=told,
        )  # fmt: skip
    assert "train" not in told.stages


def test_what_was_rounded_is_not_pruned(poet: Path, tmp_path: Path) -> None:
    api.compress(poet / "run", "int8", tmp_path / "int8")
    with pytest.raises(ModelError, match="rounded already"):
        api.compress(tmp_path / "int8", None, tmp_path / "x", prune=0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["int8"]


def test_the_command(poet: Path, tmp_path: Path, capsys: Any) -> None:
    from inkstone.cli.main import main

    start = ["compress", str(poet / "run"), "--data", str(poet / "texts.txt")]
    quick = ["--steps", "3", "--set", "training.tokens_per_step=256"]
    arguments = [*start, *quick, "--out", str(tmp_path / "a"), "--distill", "model.n_layers=1"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "weights" in out and "trained 3 steps on 768 tokens of texts.txt" in out
    assert "left" in err
    arguments = [*start, "--out", str(tmp_path / "b"), "--prune", "0.5", "--json", "--quiet"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["shrunk"]["pruned"]["by"] == "magnitude" and told["to"] is None
    for wrong in (
        ["--prune-by", "layers"], ["--distill", "a", "--distill", "b"],
        ["--distill", "model.n_layers=1", "--distill", "training.lr=1"],
    ):  # fmt: skip
        assert main([*start, *quick, "--out", str(tmp_path / "c"), *wrong]) == 2
    assert not (tmp_path / "c").exists()
