"""From a folder of text to a pre-trained model that others open, and to fine-tuning."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inkstone as ink
from inkstone import pipeline
from inkstone.checkpoint import load_model
from inkstone.errors import UsageError
from inkstone.pipeline.observer import Observer
from inkstone.recipe import load
from inkstone.training.log import StepInfo

SMALL = (
    "tokenizer.vocab_size=400", "corpus.seq_len=32", "model.d_model=32", "model.n_layers=1",
    "model.n_heads=2", "training.tokens_per_step=256", "training.precision=fp32",
    "training.max_steps=12", "evaluation.baselines=true", "training.log_every=1",
)  # fmt: skip
CASES = {
    "mlm": ("bert-small-mlm", ()),
    "nsp": ("bert-small-mlm", ("task.pairs=next_sentence",)),
    "sop": ("bert-small-mlm", ("task.pairs=sentence_order", "task.whole_words=true")),
    "roberta": ("bert-small-mlm", ("model.family=roberta",)),
    "modernbert": ("bert-small-mlm", ("model.family=modernbert",)),
    "t5": ("t5-small-span", ()),
    "bart": ("bart-small-denoising", ()),
}
CLASSES = {
    "mlm": "BertForMaskedLM", "nsp": "BertForPreTraining", "sop": "BertForPreTraining",
    "roberta": "RobertaForMaskedLM", "modernbert": "ModernBertForMaskedLM",
    "t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
}  # fmt: skip


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 documents of the same few words."""
    folder = tmp_path_factory.mktemp("texts")
    text = "the cat sat on a mat and saw red blue green fish near an old stone. River! Why?"
    words = re.findall(r"\S+", text)
    random = np.random.default_rng(0)
    rows = [{"text": " ".join(random.choice(words, 60))} for _ in range(80)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def run(
    folder: Path, texts: Path, case: str, more: Sequence[str] = (), watcher: Observer | None = None
) -> dict[str, Any]:
    name, settings = CASES[case]
    recipe = load(name, [*SMALL, *settings, *more]).with_data([texts])
    return pipeline.train(recipe, folder, cache=folder.parent / "cache", observer=watcher)


@pytest.fixture(scope="session")
def finished(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs of twelve steps, made when they are asked for."""
    root, made = tmp_path_factory.mktemp("runs"), dict[str, Any]()

    def get(case: str) -> tuple[Path, dict[str, Any]]:
        if case not in made:
            made[case] = run(root / case, texts, case)
        return root / case, made[case]

    return get


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.mark.parametrize("case", list(CASES))
def test_a_folder_of_text_becomes_a_model_that_transformers_opens(finished: Any, case: str) -> None:
    import transformers

    folder, result = finished(case)
    ours, frequencies = result["scores"]["table"]
    assert result["steps"] == 12 and frequencies["name"] == "word frequencies"
    assert 1 < ours["perplexity"] < 500 and 0 <= ours["accuracy"] <= 1
    assert ("next_sentence_accuracy" in ours) == (case == "nsp")
    assert len(result["samples"]) == 3 and all(s["prompt"] for s in result["samples"])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "pre-trained by" in page and f"{ours['perplexity']:,.1f}" in page
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[case]]
    theirs = getattr(transformers, CLASSES[case]).from_pretrained(folder / "model").eval()
    model, tokenizer, info = load_model(folder / "model")
    assert tokenizer is not None and info["task"] == result["objective"]
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
    framed = their_tokenizer("the old cat")["input_ids"]
    before, after = tokenizer.frame()
    assert framed == [*before, *tokenizer.encode("the old cat"), *after]
    ids = torch.tensor([framed])
    with torch.no_grad():
        if case in ("t5", "bart"):
            start = torch.tensor([[model.config.start_id, *framed[:2]]])
            expected = theirs(input_ids=ids, decoder_input_ids=start).logits
            found = model(ids, start)
        else:
            out = theirs(input_ids=ids)
            expected = out.prediction_logits if case in ("nsp", "sop") else out.logits
            found = model(ids)[0] if case in ("nsp", "sop") else model(ids)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


class StopAt(Observer):
    """Sends a signal to this process at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def step(self, info: StepInfo) -> None:
        if info.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("case", ["mlm", "nsp", "t5", "bart"])
def test_a_run_that_was_stopped_goes_on_to_the_bit(
    finished: Any, texts: Path, tmp_path: Path, case: str
) -> None:
    whole, _ = finished(case)
    with pytest.raises(pipeline.TrainingInterrupted):
        run(tmp_path / "again", texts, case, watcher=StopAt(7))
    pipeline.resume(tmp_path / "again", cache=tmp_path / "cache")

    def losses(folder: Path) -> list[tuple[int, float]]:
        rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        return [(r["step"], r["loss"]) for r in rows if r["kind"] == "step"]

    assert losses(tmp_path / "again") == losses(whole)
    files = [f / "model" / "model.safetensors" for f in (whole, tmp_path / "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_words_are_filled_in(finished: Any) -> None:
    folder, _ = finished("mlm")
    model = ink.load(folder)
    filled = model.fill_mask("the old [MASK] sat on a <mask>.", top=3)
    assert len(filled.masks) == 2 and all(len(words) == 3 for words in filled.masks)
    for words in filled.masks:
        assert all(a.probability >= b.probability for a, b in itertools.pairwise(words))
    assert filled.masks[0][0].text in str(filled) and "[MASK]" not in str(filled)
    assert [str(x) for x in model.predict(["a [MASK] fish"])] == [
        str(model.fill_mask("a [MASK] fish"))
    ]
    with pytest.raises(UsageError, match="no place to fill in"):
        model.fill_mask("nothing is hidden here")
    with pytest.raises(UsageError, match="tokens; the model reads 32"):
        model.fill_mask("[MASK] " + "fish " * 40)


def test_filling_in_equals_the_pipeline_of_transformers(finished: Any) -> None:
    import transformers

    for case, mask in (("mlm", "[MASK]"), ("roberta", "<mask>")):
        folder, _ = finished(case)
        theirs = transformers.pipeline("fill-mask", model=str(folder / "model"), top_k=30)
        text = f"the old {mask} sat on a mat"
        words = ink.load(folder).fill_mask(text, top=3).masks[0]
        for word, row in zip(words, theirs(text), strict=False):
            assert word.text == row["token_str"].strip().removeprefix("##")
            assert word.probability == pytest.approx(row["score"], rel=1e-4)


@pytest.mark.parametrize("case", ["t5", "bart"])
def test_a_decoder_writes_what_is_missing(finished: Any, case: str) -> None:
    mark = "<extra_id_0>" if case == "t5" else "<mask>"
    filled = ink.load(finished(case)[0]).fill_mask([f"the old {mark} sat", "a fish"])
    assert len(filled) == 2 and mark not in str(filled[0])
    if case == "t5":
        assert str(filled[0]).startswith("the old ") and str(filled[0]).endswith(" sat")


def test_held_out_scores_can_be_had_again(finished: Any, texts: Path) -> None:
    for case in ("nsp", "t5"):
        folder, result = finished(case)
        model = ink.load(folder)
        scores = model.evaluate(texts)
        assert scores["objective"] == result["objective"] and scores["targets"] > 100
        assert abs(scores["accuracy"] - result["scores"]["table"][0]["accuracy"]) < 0.1
        assert scores["rule"] == result["scores"]["rule"]
        with pytest.raises(UsageError, match="fill in what is hidden"):
            model.classify("a cat")


def _labelled(folder: Path) -> Path:
    folder.mkdir()
    random = np.random.default_rng(1)
    rows = []
    for number in range(60):
        label = number % 2
        words = ["the old cat"] + ["red"] * label + ["blue"] * (1 - label)
        text = " ".join(random.permutation(words).tolist())
        rows.append({"text": text, "label": label, "source": text, "target": text.upper()})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("case", "task"), [("mlm", "classification"), ("nsp", "classification"), ("t5", "translation"),
                       ("bart", "translation")],
)  # fmt: skip
def test_a_pretrained_run_is_where_fine_tuning_begins(
    finished: Any, tmp_path: Path, case: str, task: str
) -> None:
    folder, _ = finished(case)
    recipe = load(None, [f"task.name={task}", f"model.pretrained={folder}", "training.epochs=1"])
    recipe = recipe.with_data([_labelled(tmp_path / "rows")])
    result = pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    assert result["task"] == task and result["steps"] >= 1
    before, _, _ = load_model(folder / "model")
    after, _, _ = load_model(tmp_path / "run" / "model")
    moved = (after.embed.weight - before.embed.weight).abs().max()
    assert before.embed.weight.shape == after.embed.weight.shape and 0 < moved < 0.1


def test_what_does_not_fit_is_refused_by_name(texts: Path, tmp_path: Path) -> None:
    cases = {
        ("bert-small-mlm", "model.family=llama"): "families that do: bert",
        ("bert-small-mlm", "corpus.mask_documents=true"): "leave it out",
        ("bert-small-mlm", "model.head=sequence"): "leave model.head out",
        ("t5-small-span", "model.family=bert"): "families that do: bart",
        ("bert-small-mlm", "corpus.seq_len=3"): "16 or more",
    }
    for (name, setting), fix in cases.items():
        small = [s for s in SMALL if s.partition("=")[0] != setting.partition("=")[0]]
        recipe = load(name, [*small, setting]).with_data([texts])
        with pytest.raises(UsageError) as caught:
            pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
        assert fix in str(caught.value.fix), (setting, caught.value)
