"""api.py: train, load, generate, stream, chat and perplexity from Python."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inkstone as ink
from inkstone.errors import CheckpointError, RecipeError, UsageError

SETTINGS = {
    "tokenizer.vocab_size": 300, "corpus.seq_len": 32, "model.d_model": 32, "model.n_layers": 1,
    "model.n_heads": 1, "training.tokens_per_step": 128, "training.max_steps": 3,
    "evaluation.baselines": False, "training.precision": "fp32",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("api")


@pytest.fixture(scope="module")
def model(folder: Path) -> ink.LanguageModel:
    texts = [f"number {i} is followed by number {i + 1} and then by {i * 7}" for i in range(80)]
    (folder / "data.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    return ink.train(data=folder / "data.jsonl", run=folder / "run", settings=SETTINGS,
                     cache=folder / "cache")  # fmt: skip


def test_one_text_gives_one_answer_and_several_give_several(model: ink.LanguageModel) -> None:
    one = model.generate("number", max_tokens=6, temperature=0.0)
    many = model.generate(["number", "and then"], max_tokens=6, temperature=0.0)
    assert one.text == many[0].text and len(many) == 2
    assert "".join(model.stream("number", max_tokens=6, temperature=0.0)) == one.text


def test_mistakes_are_named(model: ink.LanguageModel, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="temprature"):
        model.generate("x", temprature=1)
    with pytest.raises(UsageError, match="context"):
        model.stream("x y z " * 100)
    with pytest.raises(CheckpointError, match="does not exist"):
        ink.load(tmp_path / "absent")
    with pytest.raises(UsageError, match="names no section"):
        ink.train(data=folder, run=tmp_path / "r", settings={"lr": 1})
    with pytest.raises(RecipeError, match="did you mean 'lr'"):
        ink.train(data=folder, run=tmp_path / "r", settings={"training.lrr": 1})


def test_chat_and_perplexity(model: ink.LanguageModel, folder: Path) -> None:
    assert model.chat([{"role": "user", "content": "number 1"}], max_tokens=4).ids
    assert model.conversation().warning
    assert model.perplexity(["number 3 is followed"]).documents == 1
    assert model.perplexity(folder / "data.jsonl").documents == 80


def test_it_shows_itself(model: ink.LanguageModel, folder: Path) -> None:
    assert "parameters" in repr(model) and str(folder) in repr(model)
    hostile = ink.LanguageModel(Path("<b>"), model.model, model.tokenizer, {"family": "<i>"})
    assert "<b>" not in hostile._repr_html_() and "&lt;i&gt;" in hostile._repr_html_()


def test_a_run_opens_in_transformers_with_the_same_logits(model: ink.LanguageModel) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model.path, dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model.path)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("number 5 is")
    assert tokenizer("number 5 is")["input_ids"] == ids
    tokens = torch.tensor([ids])
    with torch.no_grad():
        difference = (theirs(tokens).logits - model.model(tokens)).abs().max()
    assert difference <= 1e-4
