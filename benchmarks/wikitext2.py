"""WikiText-2, word by word: the best test perplexity of a GPT that 30 minutes on 2 threads buy.

    python -m benchmarks.wikitext2 [--minutes 30]

Tokens as published (Merity et al. 2016): words between spaces, one <eos> a line, empty lines too:
2,088,628 / 217,646 / 245,569 tokens and 33,278 words. Nothing but the training part is learned
from; the validation part draws the curve and picks the checkpoint. Perplexity is over every token
of the test part, each seen with at least 192 of the 256 tokens before it (stride 64); the score in
separate windows is printed beside it, and that of a modified Kneser-Ney 5-gram on the same tokens.
Time is counted from the start of the process; only the scores of the test part come after.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from inkstone import device
from inkstone.checkpoint import load_model, save_model
from inkstone.corpora.batches import BatchStream, windows
from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.models import gpt2, llama, ngram
from inkstone.tasks import language_modeling
from inkstone.training.config import TrainingConfig
from inkstone.training.log import Hook
from inkstone.training.loop import Trainer, TrainingResult

DATA = common.SHARED_DATA / "wikitext-2"
PUBLISHED = {"train": 2_088_628, "valid": 217_646, "test": 245_569}
CONTEXT, STRIDE = 256, 64


def words(part: str) -> Iterable[str]:
    """Tokens of one part, <eos> after each line."""
    path = DATA / ("train.txt.gz" if part == "train" else f"{part}.txt")
    with gzip.open(path, "rt", encoding="utf-8") if part == "train" else path.open() as lines:
        for line in lines:
            yield from line.split()
            yield "<eos>"


def prepare(root: Path) -> tuple[dict[str, Corpus], dict[str, int]]:
    """Token shards of the three parts, and the vocabulary of the first."""
    vocabulary: dict[str, int] = {}
    for word in words("train"):
        vocabulary.setdefault(word, len(vocabulary))
    corpora = {}
    for part, published in PUBLISHED.items():
        ids = np.array([vocabulary[word] for word in words(part)], np.uint16)
        assert len(ids) == published, f"{part}: {len(ids)} tokens, published {published}"
        (root / part).mkdir()
        writer = ShardWriter(
            root / part, vocab_size=len(vocabulary), eos_id=vocabulary["<eos>"], shard_tokens=2**22
        )
        writer.write(ids, np.array([0, len(ids)]))
        writer.finish(tokenizer="wikitext-2 words", n_bytes=0)
        corpora[part] = Corpus(root / part)
    return corpora, vocabulary


class Curve(Hook):
    """Validation perplexity over time."""

    def __init__(self, began: float) -> None:
        self.began, self.points = began, list[dict[str, float]]()

    def on_eval(self, step: int, scores: dict[str, float]) -> None:
        minutes = (time.perf_counter() - self.began) / 60
        perplexity = math.exp(scores["nats_per_token"])
        self.points.append({"minutes": minutes, "validation perplexity": perplexity})
        print(f"{minutes:5.1f} min  step {step:6,}  validation {perplexity:8.2f}", flush=True)


def learn(
    model: Any,
    corpora: dict[str, Corpus],
    root: Path,
    began: float,
    minutes: float,
    rows: int,
    length: int,
    settings: dict[str, Any],
) -> tuple[Any, TrainingResult, Curve]:
    """Train until `minutes` after `began`; the best checkpoint, how it went, and the curve."""
    usual = {
        "minutes": minutes - (time.perf_counter() - began) / 60, "micro_batch_size": rows,
        "lr": 3e-3, "matrix_lr": 0.02, "warmup_steps": 50, "decay_fraction": 0.6,
        "weight_decay": 0.1,
    }  # fmt: skip
    model.compute_dtype = device.training_dtype("cpu")
    (root / "run").mkdir()
    curve = Curve(began)

    def evaluate() -> dict[str, float]:
        held = windows(corpora["valid"], CONTEXT, max_tokens=60_000)
        return {"nats_per_token": language_modeling.evaluate(model, held).nats_per_token}

    result = Trainer(
        model, BatchStream(corpora["train"], batch_size=rows, seq_len=length, seed=1),
        TrainingConfig(**(usual | settings)), root / "run", evaluate=evaluate,
        hooks=[curve], save_model=lambda folder: save_model(folder, model, None),
    ).run()  # fmt: skip
    best, _, _ = load_model(result.checkpoint)
    best.compute_dtype = model.compute_dtype
    return best, result, curve


def score(model: Any, corpus: Corpus, published: int, stride: int) -> float:
    """Perplexity of every token but the first, the last end-of-text of the shards left out."""
    held = windows(corpus, CONTEXT, stride=stride, max_tokens=published - 1)
    return language_modeling.evaluate(model, held).perplexity


def kneser_ney(corpora: dict[str, Corpus], size: int) -> float:
    """Perplexity of a modified Kneser-Ney 5-gram on the test part."""
    train, test = (
        corpora[part].tokens(0, PUBLISHED[part]).astype(np.int64) for part in ("train", "test")
    )
    model = ngram.Model(ngram.Config(vocab_size=size, order=5)).fit(train)
    return float(np.exp(-model.log_probs(test)[1:].mean()))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--family", default="llama", choices=["llama", "gpt2"])
    parser.add_argument("--shape", type=json.loads, default={})
    parser.add_argument("--training", type=json.loads, default={})
    parser.add_argument("--rows", type=int, default=16)
    arguments = parser.parse_args()
    began = time.perf_counter()
    device.tune_allocator()
    torch.set_num_threads(common.THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        corpora, vocabulary = prepare(root)
        family = {"llama": llama, "gpt2": gpt2}[arguments.family]
        shape = {"d_model": 256, "n_layers": 4, "n_heads": 4, "max_seq_len": CONTEXT}
        if family is llama:
            shape["qk_norm"] = True
        config = family.Config(vocab_size=len(vocabulary), **(shape | arguments.shape))
        model = family.Model(config)
        best, result, curve = learn(
            model, corpora, root, began, arguments.minutes, arguments.rows, CONTEXT,
            {"eval_every": 250} | arguments.training,
        )  # fmt: skip
        minutes = (time.perf_counter() - began) / 60
        rows = [
            {"model": f"{arguments.family}, {sum(p.numel() for p in best.parameters()):,} weights",
             "minutes": minutes, "tokens seen": result.tokens,
             "validation": score(best, corpora["valid"], PUBLISHED["valid"], STRIDE),
             "test": score(best, corpora["test"], PUBLISHED["test"], STRIDE),
             "test, separate windows": score(best, corpora["test"], PUBLISHED["test"], CONTEXT)},
            {"model": "modified Kneser-Ney 5-gram", "test": kneser_ney(corpora, len(vocabulary))},
        ]  # fmt: skip
    common.report("wikitext2", rows, curve=curve.points)


if __name__ == "__main__":
    main()
