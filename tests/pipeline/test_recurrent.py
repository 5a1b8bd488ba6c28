"""Runs of the recurrent families: planned, trained, saved, opened, used, resumed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import inkstone as ink
from inkstone import pipeline
from inkstone.recipe import Recipe
from inkstone.training.state import checkpoint_path

SENTENCES = [
    (["Anna", "saw", "Rome"], ["B-PER", "O", "B-LOC"]),
    (["Rome", "is", "old"], ["B-LOC", "O", "O"]),
    (["Bert", "left"], ["B-PER", "O"]),
    (["the", "river", "saw", "Anna"], ["O", "O", "O", "B-PER"]),
]


def _recipe(data: Path, **sections: dict[str, object]) -> Recipe:
    base: dict[str, dict[str, object]] = {
        "data": {"path": (str(data),)}, "training": {"precision": "fp32", "max_steps": 6},
        "tokenizer": {"vocab_size": 300},
    }  # fmt: skip
    return Recipe().with_values(
        {k: {**base.get(k, {}), **v} for k, v in {**base, **sections}.items()}
    )


def test_a_language_model_goes_on_where_it_was(tmp_path: Path) -> None:
    text = "\n".join(
        json.dumps(
            {"text": f"paragraph {i} tells of the number {i * i} and of {i % 7} rivers. " * 3}
        )
        for i in range(120)
    )
    (tmp_path / "text.jsonl").write_text(text)
    recipe = _recipe(
        tmp_path / "text.jsonl",
        corpus={"seq_len": 32},
        model={"family": "lstm", "d_model": 32, "dropout": 0.2, "weight_drop": 0.2, "ar": 1.0},
        training={"max_steps": 6, "tokens_per_step": 256, "save_every": 3, "precision": "fp32"},
        evaluation={"samples": 0, "baselines": False},
    )
    run, cache = tmp_path / "run", tmp_path / "cache"
    pipeline.train(recipe, run, cache=cache)
    weights = run / "model" / "model.safetensors"
    whole = weights.read_bytes()
    model = ink.load(run)
    texts = [str(model.generate("paragraph 7", max_tokens=6, temperature=0)) for _ in range(2)]
    assert texts[0] == texts[1]
    (run / "result.json").unlink()
    shutil.rmtree(run / "model")
    shutil.rmtree(checkpoint_path(run, 6))
    pipeline.resume(run, cache=cache)
    assert weights.read_bytes() == whole


@pytest.mark.parametrize("family", ["bilstm", "bigru", "birnn"])
def test_a_tagger_reads_letters(family: str, tmp_path: Path) -> None:
    rows = [json.dumps({"tokens": w, "tags": t}) for w, t in SENTENCES * 12]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    recipe = _recipe(
        tmp_path / "rows.jsonl",
        task={"name": "tagging"},
        model={"family": family, "d_model": 32, "dropout": 0.0, "n_layers": 1},
        training={"max_steps": 100, "lr": 0.02, "examples_per_step": 8, "precision": "fp32"},
    )
    pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    tagger = ink.load(tmp_path / "run")
    assert tagger.model.config.char_vocab_size > 2
    assert tagger.tag([["Anna", "saw", "Rome"]])[0].tags == ("B-PER", "O", "B-LOC")
