"""Two small trained models, for tests of what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inkstone as ink

TEXTS = [
    f"the {a} {b} sat on the {c} and saw a {b}"
    for a in ("old", "red", "grey", "small")
    for b in ("cat", "fish", "stone", "bird")
    for c in ("mat", "river", "hill", "bank")
]


@pytest.fixture(scope="session")
def poet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("poet")
    (folder / "texts.txt").write_text("\n\n".join(TEXTS * 4))
    settings = {
        "training.max_steps": 40, "model.d_model": 64, "model.n_layers": 2, "model.n_heads": 2,
        "tokenizer.vocab_size": 320, "corpus.seq_len": 64, "evaluation.baselines": False,
        "training.precision": "fp32",
    }  # fmt: skip
    ink.train(data=folder / "texts.txt", run=folder / "run", settings=settings)
    return folder


@pytest.fixture(scope="session")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("critic")
    rows = [{"text": text, "label": "water" if "river" in text or "bank" in text else "land"}
            for text in TEXTS * 3]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "training.max_steps": 150, "training.lr": 3e-3, "model.family": "bert",
        "model.d_model": 64, "model.n_layers": 1, "model.n_heads": 2, "training.precision": "fp32",
    }  # fmt: skip
    ink.train("classification", data=folder / "rows.jsonl", run=folder / "run", settings=settings)
    return folder
