"""WikiText-2, word by word: an LSTM, 30 minutes on 2 threads.

    python -m benchmarks.lstm_wikitext2 [--minutes 30]

Tokens, parts, curve and clock are those of `benchmarks.wikitext2`. Windows of the training part
begin with an empty state; a step scores a sample of the words. The test part is read in one go from
end to end, as Merity et al. 2017 do, the state carried all the way; the score in windows of 256 at
stride 64 stands beside it. Their AWD-LSTM (33M weights, 750 epochs) reaches 65.8. Reach: 110.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common, wikitext2
from benchmarks.wikitext2 import CONTEXT, PUBLISHED, STRIDE
from inkstone import device
from inkstone.corpora.shards import Corpus
from inkstone.models import lstm
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.nn.steps import Steps

SHAPE = {
    "d_model": 256, "n_layers": 2, "hidden_size": 512, "max_seq_len": CONTEXT, "head_scale": 4.0,
    "dropout": 0.3, "input_dropout": 0.2, "hidden_dropout": 0.2, "weight_drop": 0.2,
}  # fmt: skip
SETTINGS = {
    "lr": 6e-3, "matrix_lr": 0.03, "decay_fraction": 1.0, "sampled_words": 4096, "eval_every": 700
}  # fmt: skip
AT_ONCE = 4096  # tokens of the test part read at a time


@torch.no_grad()
def carried(model: Any, corpus: Corpus, published: int) -> float:
    """Perplexity of every token but the first, the state carried from end to end."""
    ids = torch.from_numpy(corpus.tokens(0, published).astype(np.int64))
    states, nats = None, 0.0
    for start in range(0, published - 1, AT_ONCE):
        end = min(published - 1, start + AT_ONCE)
        part = ids[None, start:end]
        hidden, states = model.read(part, Steps.of(part), states)
        nats += float(chunked_cross_entropy(hidden, model.head_weight, ids[start + 1 : end + 1])[0])
    return math.exp(nats / (published - 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--shape", type=json.loads, default={})
    parser.add_argument("--training", type=json.loads, default={})
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--length", type=int, default=64)
    arguments = parser.parse_args()
    began = time.perf_counter()
    device.tune_allocator()
    torch.set_num_threads(common.THREADS)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        corpora, vocabulary = wikitext2.prepare(root)
        model = lstm.Model(lstm.Config(vocab_size=len(vocabulary), **(SHAPE | arguments.shape)))
        best, result, curve = wikitext2.learn(
            model, corpora, root, began, arguments.minutes, arguments.rows, arguments.length,
            SETTINGS | arguments.training,
        )  # fmt: skip
        minutes = (time.perf_counter() - began) / 60
        row: dict[str, Any] = {
            "model": f"lstm, {sum(p.numel() for p in best.parameters()):,} weights",
            "minutes": minutes, "tokens seen": result.tokens,
        }  # fmt: skip
        for name, part in (("validation", "valid"), ("test", "test")):
            row[name] = carried(best, corpora[part], PUBLISHED[part])
        row["test, windows"] = wikitext2.score(best, corpora["test"], PUBLISHED["test"], STRIDE)
    common.report("lstm_wikitext2", [row], curve=curve.points)


if __name__ == "__main__":
    main()
