"""model.embeddings: word vectors begin the embedding, whatever is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone import pipeline, recipe
from inkstone.errors import CheckpointError, ModelError, RunError, UsageError
from inkstone.pipeline.observer import Observer
from inkstone.training.signals import TrainingInterrupted
from inkstone.vectors import formats
from inkstone.vectors.table import Vectors

D = 16
TEXT = "the cat sat on a mat and saw red blue green fish near old stone river"
WORDS = TEXT.split()
SMALL = [
    "tokenizer.kind=word", "tokenizer.vocab_size=64", "model.n_layers=1", "model.n_heads=1",
    "corpus.seq_len=16", "training.tokens_per_step=64", "training.max_steps=2",
    "training.precision=fp32", "evaluation.sample_tokens=4", "evaluation.baselines=false",
]  # fmt: skip


class Notes(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embeddings")
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, size=40)) for _ in range(60)]
    rows = [json.dumps({"text": x, "label": "ab"[i % 2]}) for i, x in enumerate(lines)]
    (folder / "text.jsonl").write_text("\n".join(rows))
    made = Vectors(tuple(WORDS[:12]), random.normal(size=(12, D)).astype(np.float32))
    formats.write(made, folder / "words.txt", "word2vec")
    return folder


def train(
    root: Path, run: Path, *settings: str, observer: Observer | None = None
) -> dict[str, Any]:
    network = (
        "model.family=word2vec" not in settings and "model.family=bag_of_words" not in settings
    )
    small = [s for s in SMALL if network or not s.startswith("model.")]
    chosen = recipe.load(None, [*small, *settings]).with_data([root / "text.jsonl"])
    return pipeline.train(chosen, run, cache=root / "cache", observer=observer, device="cpu")


@pytest.mark.parametrize(
    "settings",
    [
        ["model.family=llama"],
        ["model.family=gpt2"],
        ["task.name=classification", "model.family=bert"],
    ],
    ids=["llama", "gpt2", "bert on examples"],
)
def test_a_run_begins_with_them(settings: list[str], root: Path, tmp_path: Path) -> None:
    notes = Notes()
    source = f"model.embeddings={root / 'words.txt'}"
    train(root, tmp_path / "run", *settings, source, observer=notes)
    told = [x for x in notes.notes if "begin with the vector of their word in words.txt" in x]
    assert len(told) == 1 and told[0].startswith("12 of ")
    saved = recipe.load(tmp_path / "run" / "recipe.toml")
    assert saved.model.fields["d_model"] == D
    assert (
        "the vectors of words.txt hold as many numbers"
        in (tmp_path / "run" / "recipe.toml").read_text()
    )
    info = (tmp_path / "run" / "model" / "inkstone.json").read_text()
    assert (
        json.loads(info)["recipe"]["model"]["embeddings"] == "words.txt" and str(root) not in info
    )


def test_what_does_not_fit_is_told_before_the_training(root: Path, tmp_path: Path) -> None:
    source = f"model.embeddings={root / 'words.txt'}"
    for more, error, message in (
        (["model.d_model=32"], ModelError, "16 numbers do not fit an embedding of 32"),
        (["model.family=word2vec"], UsageError, "has no token embedding"),
        (["task.name=classification", "model.family=bag_of_words"], UsageError,
         "no token embedding"),
        (["task.name=classification", "model.family=bert", "model.pretrained=x"], UsageError,
         "leave one of them out"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            train(root, tmp_path / "run", source, *more)
    with pytest.raises(CheckpointError, match="holds no word vectors"):
        train(root, tmp_path / "run", "model.embeddings=nowhere")
    assert not (tmp_path / "run").exists()


def test_other_vectors_are_no_continuation(root: Path, tmp_path: Path) -> None:
    class Stop(Observer):
        def stage(self, name: str) -> None:
            if name == "train":
                raise TrainingInterrupted(15, 0)

    mine = tmp_path / "mine.txt"
    mine.write_bytes((root / "words.txt").read_bytes())
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(root, run, f"model.embeddings={mine}", observer=Stop())
    mine.write_text(mine.read_text().replace("0", "1"))
    with pytest.raises(RunError, match="the word vectors changed"):
        pipeline.resume(run, cache=root / "cache", device="cpu")
    mine.write_bytes((root / "words.txt").read_bytes())
    assert pipeline.resume(run, cache=root / "cache", device="cpu")["steps"] == 2
