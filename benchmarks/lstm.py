"""LSTM training: Inkstone beside torch's own LSTM and Keras on TensorFlow, 2 threads.

    python -m benchmarks.lstm [--keras-python PATH] [--imdb-epochs 0] [--rounds 3]

The shape of the textbooks: Embedding(10,000 × 128) → LSTM(128) → sigmoid, length 500, batch 128,
Adam. Each side runs in a process of its own, in turn, several rounds; the figure is the median
step of the median round. Floor: the operations of such a step at the measured matmul rate. With
--imdb-epochs N, the same network learns IMDb (10,000 most frequent words, the last 500 of each
review): Keras pads every review to 500, we read what is there; accuracy is on all 25,000 test
reviews after each epoch. Keras lives in an environment of its own, whose Python is named.
Reach: 2 × Keras on the shape, 4 × per epoch on IMDb.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from typing import Any

import numpy as np

from benchmarks import common

ROWS, LENGTH, WORDS, WIDTH, ROUNDS = 128, 500, 10_000, 128, 3
STEPS = {"inkstone": 10, "torch": 5, "keras": 10}
WORD = re.compile(r"[a-z0-9']+")
FLOPS = 3 * 2 * (WIDTH + WIDTH) * 4 * WIDTH * ROWS * LENGTH  # of one step: forward and backward


def ours(precision: str) -> Any:
    """(ids [B, T], mask or None, labels) → loss, after one step of training; and the model."""
    import torch
    import torch.nn.functional as F

    from inkstone import device
    from inkstone.models import bilstm

    device.tune_allocator()
    torch.manual_seed(0)
    config = bilstm.Config(
        vocab_size=WORDS, max_seq_len=LENGTH, d_model=WIDTH, directions=1, head="sequence",
        n_labels=1,
    )  # fmt: skip
    model = bilstm.Model(config)
    model.compute_dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step(ids: Any, mask: Any, labels: Any) -> float:
        scores = model(ids, attention_mask=mask)[:, 0].float()
        loss = F.binary_cross_entropy_with_logits(scores, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, model


def torchs(precision: str) -> Any:
    """The same with torch.nn.LSTM, under autocast for bf16 as its documentation says."""
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    embed = torch.nn.Embedding(WORDS, WIDTH)
    lstm = torch.nn.LSTM(WIDTH, WIDTH, batch_first=True)
    head = torch.nn.Linear(WIDTH, 1)
    parameters = [*embed.parameters(), *lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def step(ids: Any, mask: Any, labels: Any) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            scores = head(lstm(embed(ids))[0][:, -1])[:, 0]
        loss = F.binary_cross_entropy_with_logits(scores.float(), labels)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step, None


def shape(side: str, precision: str) -> None:
    """Time steps of one of the sides that run on torch."""
    import torch

    torch.set_num_threads(common.THREADS)
    step, _ = (ours if side == "inkstone" else torchs)(precision)
    ids = torch.randint(0, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(ROWS) % 2).float()
    for _ in range(2):
        step(ids, None, labels)
    times = []
    for _ in range(STEPS[side]):
        began = time.perf_counter()
        step(ids, None, labels)
        times.append(time.perf_counter() - began)
    facts: dict[str, Any] = {"rate": ROWS / statistics.median(times)}
    if side == "inkstone":
        from inkstone import device

        facts["gflops"] = device.measure().matmul_gflops[precision]
    print(json.dumps(facts))


KERAS = """
import json, os, sys, time, statistics
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import numpy as np, tensorflow as tf, keras
tf.config.threading.set_intra_op_parallelism_threads({threads})
tf.config.threading.set_inter_op_parallelism_threads({threads})
keras.utils.set_random_seed(0)
model = keras.Sequential([
    keras.layers.Embedding({words}, {width}), keras.layers.LSTM({width}),
    keras.layers.Dense(1, activation="sigmoid"),
])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
if sys.argv[1] == "shape":
    rng = np.random.default_rng(0)
    x = rng.integers(0, {words}, ({steps} * {rows}, {length})).astype("int32")
    y = (np.arange(len(x)) % 2).astype("float32")
    model.fit(x[:2 * {rows}], y[:2 * {rows}], batch_size={rows}, verbose=0)
    began = time.perf_counter()
    model.fit(x, y, batch_size={rows}, verbose=0)
    print(json.dumps({{"rate": len(x) / (time.perf_counter() - began)}}))
else:
    with np.load(sys.argv[2]) as data:
        x, y, xt, yt = (data[k] for k in ("x", "y", "xt", "yt"))
    result = []
    for _ in range(int(sys.argv[3])):
        began = time.perf_counter()
        model.fit(x, y, batch_size={rows}, verbose=0)
        spent = time.perf_counter() - began
        result.append([spent, float(model.evaluate(xt, yt, batch_size=512, verbose=0)[1])])
    print(json.dumps({{"epochs": result}}))
"""


def keras(python: str, *arguments: str) -> dict[str, Any]:
    """Run the Keras side in its own environment."""
    program = KERAS.format(
        threads=common.THREADS, words=WORDS, width=WIDTH, rows=ROWS, length=LENGTH,
        steps=STEPS["keras"],
    )  # fmt: skip
    done = subprocess.run(
        [python, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=True,
        env=os.environ | {"OMP_NUM_THREADS": str(common.THREADS), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def reviews() -> dict[str, Any]:
    """Ids of the last 500 words of each review, 0 in front of short ones, and their labels."""
    texts: dict[str, list[list[str]]] = {}
    labels = {}
    for part in ("train", "test"):
        rows = common.rows(f"imdb/{part}.jsonl.gz")
        texts[part] = [WORD.findall(row["text"].lower().replace("<br />", " ")) for row in rows]
        labels[part] = np.array([row["label"] for row in rows], np.float32)
    counts = Counter(word for text in texts["train"] for word in text)
    ids = {word: i for i, (word, _) in enumerate(counts.most_common(WORDS - 2), 2)}
    found = {}
    for part, name in (("train", "x"), ("test", "xt")):
        found[name] = np.zeros((len(texts[part]), LENGTH), np.int32)
        for row, text in enumerate(texts[part]):
            known = [ids.get(word, 1) for word in text[-LENGTH:]]
            found[name][row, LENGTH - len(known) :] = known
    return found | {"y": labels["train"], "yt": labels["test"]}


def imdb(path: str, epochs: str) -> None:
    """Our side on IMDb: rows of like length together, no padding."""
    import torch

    from inkstone import device
    from inkstone.corpora.examples import ExampleStream

    torch.set_num_threads(common.THREADS)
    precision = "bf16" if device.training_dtype("cpu") == torch.bfloat16 else "fp32"
    step, model = ours(precision)
    with np.load(path) as data:
        x, y, xt, yt = (torch.from_numpy(data[k]).long() for k in ("x", "y", "xt", "yt"))

    def cut(ids: Any) -> Any:
        return ids[:, LENGTH - int((ids != 0).sum(1).max()) :]

    def collate(numbers: Any) -> Any:
        ids = cut(x[numbers])
        return ids, ids != 0, y[numbers].float()

    lengths = (x != 0).sum(1).numpy()
    stream = ExampleStream(lengths, collate, batch_examples=ROWS, batch_tokens=None, seed=0)
    result = []
    for _ in range(int(epochs)):
        model.train()
        began = time.perf_counter()
        for _ in range(stream.batches_per_epoch):
            step(*next(stream))
        spent = time.perf_counter() - began
        model.eval()
        right = 0
        with torch.no_grad():
            for part in (xt != 0).sum(1).argsort().split(512):
                ids = cut(xt[part])
                right += int(((model(ids, attention_mask=ids != 0)[:, 0] > 0) == yt[part]).sum())
        result.append([spent, right / len(yt)])
    print(json.dumps({"epochs": result, "tokens": int(lengths.sum()), "places": x.numel()}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keras-python", default="")
    parser.add_argument("--imdb-epochs", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the shape; 0 leaves it out")
    arguments = parser.parse_args()
    sides = [(s, p) for s in ("inkstone", "torch") for p in ("bf16", "fp32")]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {side: [] for side in sides}
    if arguments.keras_python:
        found["keras", "fp32"] = []
    for _ in range(arguments.rounds):
        for side, runs in found.items():
            runs.append(
                keras(arguments.keras_python, "shape")
                if side[0] == "keras"
                else common.child(__spec__.name, "shape", *side)
            )
    rates = {s: statistics.median(run["rate"] for run in runs) for s, runs in found.items() if runs}
    rows: list[dict[str, Any]] = []
    for side, rate in rates.items():
        row: dict[str, Any] = {"side": side[0], "precision": side[1], "sequences/s": rate}
        if ("keras", "fp32") in rates:
            row["beside Keras"] = rate / rates["keras", "fp32"]
        if side[0] == "inkstone":
            gflops = statistics.median(run["gflops"] for run in found[side])
            row["floor (sequences/s)"] = ROWS * gflops * 1e9 / FLOPS
        rows.append(row)
    facts: dict[str, Any] = {}
    if arguments.imdb_epochs:
        common.OUT.mkdir(parents=True, exist_ok=True)
        path, epochs = str(common.OUT / "imdb_lstm.npz"), str(arguments.imdb_epochs)
        np.savez(path, **reviews())
        runs = {"inkstone": common.child(__spec__.name, "imdb", path, epochs)}
        facts["tokens of places"] = runs["inkstone"]["tokens"] / runs["inkstone"]["places"]
        if arguments.keras_python:
            runs["keras"] = keras(arguments.keras_python, "imdb", path, epochs)
        for name, run in runs.items():
            for number, (seconds, accuracy) in enumerate(run["epochs"], 1):
                rows.append(
                    {"side": name, "IMDb epoch": number, "seconds": seconds, "accuracy": accuracy}
                )
    common.report("lstm", rows, **facts)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("shape", "imdb"):
        globals()[sys.argv[1]](*sys.argv[2:])
    else:
        main()
