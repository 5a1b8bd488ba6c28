"""A tiny run: a model, a corpus of known ids, a trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.checkpoint import save_model
from inkstone.corpora.batches import BatchStream, windows
from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.models import gpt2
from inkstone.tasks import language_modeling
from inkstone.training.config import TrainingConfig
from inkstone.training.loop import Trainer

SHAPE: dict[str, Any] = {
    "vocab_size": 40, "d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_seq_len": 16,
}  # fmt: skip


def tiny_corpus(folder: Path, seed: int = 0) -> Corpus:
    """200 documents of a learnable pattern."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    writer = ShardWriter(folder, vocab_size=40, eos_id=39, shard_tokens=4096)
    for _ in range(200):
        start, length = int(random.integers(0, 30)), int(random.integers(3, 20))
        writer.write((start + np.arange(length)) % 39, np.array([0, length]))
    writer.finish(tokenizer="test", n_bytes=4000)
    return Corpus(folder)


def tiny_trainer(root: Path, run: str = "run", **settings: Any) -> Trainer:
    """A trainer in root/run; the same settings give the same run."""
    data = root / "corpus"
    corpus = Corpus(data) if data.exists() else tiny_corpus(data)
    extra = {k: settings.pop(k) for k in ("hooks", "loss", "fingerprint") if k in settings}
    dropout = settings.pop("dropout", 0.1)
    rows = settings.pop("rows", 8)
    torch.manual_seed(1)
    model = gpt2.Model(gpt2.Config(**SHAPE, dropout=dropout)).to(settings.pop("device", "cpu"))
    config = TrainingConfig(
        **{"max_steps": 30, "micro_batch_size": 4, "log_every": 1, "warmup_steps": 3, **settings}
    )
    folder = root / run
    folder.mkdir(exist_ok=True)

    def evaluate() -> dict[str, float]:
        report = language_modeling.evaluate(model, windows(corpus, 16, max_tokens=400))
        return {"nats_per_token": report.nats_per_token}

    return Trainer(
        model,
        BatchStream(corpus, batch_size=rows, seq_len=16, seed=3, mask_documents=True),
        config,
        folder,
        save_model=lambda target: save_model(target, model, None),
        evaluate=evaluate,
        **extra,
    )


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """`tiny_trainer` in the test's folder."""
    return lambda *args, **settings: tiny_trainer(tmp_path, *args, **settings)
