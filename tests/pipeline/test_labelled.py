"""Runs on labelled examples, from scratch, and what transformers makes of their models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import inkstone as ink
from inkstone import pipeline
from inkstone.errors import UsageError
from inkstone.recipe import Recipe


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_new_classifier_opens_in_transformers(family: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    rows = [
        {"text": f"number {i} is {'good' if i % 2 else 'bad'} by {i * i}", "label": f"l{i % 2}"}
        for i in range(60)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe().with_values(
        {
            "data": {"path": (str(tmp_path / "rows.jsonl"),)},
            "task": {"name": "classification"},
            "tokenizer": {"vocab_size": 300},
            "model": {"family": family, "d_model": 32, "n_layers": 1, "n_heads": 2},
            "training": {"precision": "fp32", "max_steps": 3},
        }
    )
    pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    mine = ink.load(tmp_path / "run").model
    folder = tmp_path / "run" / "model"
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    pad = json.loads((folder / "config.json").read_text())["pad_token_id"]
    ids = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, pad, pad, pad]])
    mask = (ids != pad).long()
    with torch.no_grad():
        right = theirs(ids, attention_mask=mask).logits
        torch.testing.assert_close(mine(ids, attention_mask=mask), right, rtol=0, atol=1e-4)


def test_marks_beside_the_words_reach_the_tagger(tmp_path: Path) -> None:
    rows = [
        {"tokens": ["see", f"w{i}"], "kind": ["a", "b" if i % 3 else "c"],
         "tags": ["O", "B-X" if i % 3 else "O"]}
        for i in range(60)
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "data": {"path": (str(tmp_path / "rows.jsonl"),)},
        "task": {"name": "tagging", "marks_field": "kind"},
    }
    recipe = Recipe().with_values(settings | {"model": {"family": "crf"}})
    result = pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    assert result["scores"][0]["name"] == "span_f1" and result["scores"][0]["value"] == 1.0
    with pytest.raises(UsageError, match="needs a mark of each word"):
        ink.load(tmp_path / "run").tag("see w1")
    for family in ("hmm", "bert"):
        other = Recipe().with_values(settings | {"model": {"family": family}})
        with pytest.raises(UsageError, match="only the family crf reads marks"):
            pipeline.train(other, tmp_path / family, cache=tmp_path / "cache")


def test_where_case_is_dropped_a_tagger_is_told_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    forms = {"O": str.lower, "B-T": str.title, "B-U": str.upper, "B-M": lambda w: f"{w}Io"}
    rows = []
    for i in range(240):
        tags = [list(forms)[(i + shift) % 4] for shift in (0, 1)]
        rows.append({"tokens": [forms[tag](f"ab{i % 3}") for tag in tags], "tags": tags})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe().with_values(
        {
            "data": {"path": (str(tmp_path / "rows.jsonl"),)},
            "task": {"name": "tagging"},
            "tokenizer": {"vocab_size": 300, "lowercase": True},
            "model": {"family": "bert", "d_model": 32, "n_layers": 1, "n_heads": 2},
            "training": {"precision": "fp32", "max_steps": 60, "lr": 3e-3},
        }
    )
    result = pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    assert result["scores"][0]["value"] == 1.0
    loaded = ink.load(tmp_path / "run")
    assert loaded.tag("AB1 ab1 Ab1").tags == ("B-U", "O", "B-T")
    folder = tmp_path / "run" / "model"
    theirs = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    ids, types = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[0, 2, 3, 4]])
    with torch.no_grad():
        mine, right = loaded.model(ids, token_types=types), theirs(ids, token_type_ids=types).logits
    torch.testing.assert_close(mine, right, rtol=0, atol=1e-4)
    other = recipe.with_values({"task": {"capitals": True}, "model": {"family": "distilbert"}})
    with pytest.raises(UsageError, match="knows no types of tokens"):
        pipeline.train(other, tmp_path / "other", cache=tmp_path / "cache")
    cased = recipe.with_values({"tokenizer": {"lowercase": False}})
    pipeline.train(cased, tmp_path / "cased", cache=tmp_path / "cache")
    assert ink.load(tmp_path / "cased").model.config.n_token_types == 2
