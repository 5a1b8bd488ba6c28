"""An n-gram model through the whole pipeline: scores, folder, and a run that was cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import inkstone as ink
from inkstone import pipeline, recipe
from inkstone.errors import ModelError, RunError, UsageError
from inkstone.evaluation.counted import perplexity
from inkstone.models import ngram
from inkstone.text.store import DocumentStore
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
    seen = perplexity(model, tokenizer, ["Document 7 tells of the number 49."])
    assert seen.perplexity < 5 < tokenizer.vocab_size and seen.documents == 1
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


def test_it_is_opened_and_scored_like_any_model(finished: tuple[Path, dict[str, Any]]) -> None:
    root, result = finished
    model = ink.load(root / "run")
    assert model.n_parameters == result["parameters"] and "ngram" in repr(model)
    assert "4 tokens" in model._repr_html_()
    report = model.perplexity(list(DocumentStore(next(root.glob("cache/**/text/valid")))))
    assert report.perplexity == pytest.approx(result["scores"]["table"][0]["perplexity"])
    assert report.rule == result["scores"]["rule"]
    assert model.perplexity(root / "texts").documents == 40
    for refused in (model.generate, model.stream, model.chat):
        with pytest.raises(UsageError, match="counted"):
            refused("x")  # type: ignore[operator]
    with pytest.raises(UsageError, match="stride"):
        model.perplexity(["x"], stride=3)


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


@pytest.mark.parametrize("family", ["bag_of_words", "hmm"])
def test_families_that_learn_from_labels_are_refused(family: str, tmp_path: Path) -> None:
    chosen = recipe.load(None, [f"model.family={family}"]).with_data([tmp_path])
    with pytest.raises(UsageError, match="does not learn to continue text"):
        pipeline.train(chosen, tmp_path.with_name("run"), cache=tmp_path.with_name("cache"))
