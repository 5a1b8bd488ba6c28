"""An n-gram model through the whole pipeline: scores, folder, and a run that was cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from inkstone import pipeline, recipe
from inkstone.errors import ModelError, RunError
from inkstone.evaluation.baselines import ngram_nats
from inkstone.models import ngram
from inkstone.tokenizers.tokenizer import Tokenizer

SETTINGS = ["tokenizer.vocab_size=300", "evaluation.sample_tokens=8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    root = tmp_path_factory.mktemp("counting")
    (root / "texts").mkdir()
    for number in range(40):
        text = f"Document {number} tells of the number {number * number}. " * 5
        (root / "texts" / f"{number}.txt").write_text(text + str(number) * 30)
    chosen = recipe.load("ngram", SETTINGS).with_data([root / "texts"])
    return root, pipeline.train(chosen, root / "run", cache=root / "cache")


def test_the_score_is_the_models_own(finished: tuple[Path, dict[str, Any]]) -> None:
    root, result = finished
    model = ngram.Model.load(root / "run" / "model")
    tokenizer = Tokenizer.load(root / "run" / "model")
    row = result["scores"]["table"][0]
    nats = math.log(row["perplexity"]) * result["scores"]["tokens"]
    assert row["bits_per_byte"] == pytest.approx(nats / math.log(2) / result["scores"]["bytes"])
    assert model.config == ngram.Config(
        vocab_size=tokenizer.vocab_size, order=5, boundary_id=tokenizer.eos_id
    )
    seen, tokens = ngram_nats(model, ["Document 7 tells of the number 49. "], tokenizer)
    assert seen / tokens < math.log(4) < math.log(tokenizer.vocab_size)
    assert [r["name"] for r in result["scores"]["table"][1:]] == ["xz, after training text", "xz"]
    assert len(result["samples"]) == 3 and all(s["text"] for s in result["samples"])


def test_the_run_is_like_any_other(finished: tuple[Path, dict[str, Any]]) -> None:
    root, _ = finished
    run = root / "run"
    saved = recipe.load(run / "recipe.toml")
    assert saved.model.fields == {"vocab_size": 300, "boundary_id": 0, "order": 5}
    info = json.loads((run / "model" / "inkstone.json").read_text())
    assert info["family"] == "ngram" and info["scores"]["perplexity"] > 1
    assert info["recipe"]["data"]["path"] == ["texts"]
    page = (run / "report.html").read_text()
    assert "this model" in page and "steps, best" not in page
    with pytest.raises(RunError, match="already holds a run"):
        pipeline.train(saved, run, cache=root / "cache")


def test_a_run_that_was_cut_off_goes_on(finished: tuple[Path, dict[str, Any]]) -> None:
    root, result = finished
    assert pipeline.resume(root / "run", cache=root / "cache") == result
    (root / "run" / "result.json").unlink()
    again = pipeline.resume(root / "run", cache=root / "cache")
    assert again["scores"] == result["scores"] and again["samples"] == result["samples"]


def test_a_vocabulary_that_is_not_the_tokenizers(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    root, _ = finished
    chosen = recipe.load("ngram", [*SETTINGS, "model.vocab_size=7"]).with_data([root / "texts"])
    with pytest.raises(ModelError, match="vocab_size = 7, but the tokenizer has 300"):
        pipeline.train(chosen, tmp_path / "run", cache=root / "cache")
    assert not (tmp_path / "run").exists()
