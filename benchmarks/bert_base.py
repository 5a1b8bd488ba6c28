"""BERT-base: Inkstone beside transformers, inference and fine-tuning, 2 threads.

    python -m benchmarks.bert_base [--only JOB ...]

Full-length input is 16 rows of 128 tokens; ragged input is 16 IMDb reviews a batch, cut at 512
tokens, as they come, which transformers pads to the longest of the batch. Each side is a process
of its own; they take turns, two passes each, of which the first does not count. The figure is the
median pass. transformers runs as its documentation says, in bf16 (weights in bf16 for inference,
autocast for training), but without dropout of attention weights, which we have not.
Reach: 1.4 × on full-length input, 2 × on ragged batches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common

ROWS, LENGTH, LONGEST, TURN = 16, 128, 512, 2
TURNS = {"inference": 20, "fine-tuning": 6, "ragged inference": 6, "ragged fine-tuning": 3}
JOBS = tuple(TURNS)
SIDES = ("transformers", "inkstone")
Batch = tuple[Any, Any, Any]


def batches(job: str) -> list[Batch]:
    """Ids, masks and labels: random words, or reviews in the order of the file."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if not job.startswith("ragged"):
        ids = torch.randint(1000, 30000, (2, ROWS, LENGTH), generator=generator)
        return [(part, torch.ones_like(part), torch.arange(ROWS) % 2) for part in ids]
    from inkstone.tokenizers.tokenizer import Tokenizer

    folder = common.SHARED_DATA / "tokenizers" / "bert"
    tokenizer = Tokenizer.load(folder / "bert-base-uncased-vocab.txt")
    with gzip.open(common.SHARED_DATA / "imdb" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        reviews = [json.loads(line) for _, line in zip(range(4000), file, strict=False)]
    order = torch.randperm(len(reviews), generator=generator).tolist()
    result = []
    for start in range(0, 4 * ROWS, ROWS):
        texts = [reviews[i]["text"] for i in order[start : start + ROWS]]
        rows = [tokenizer.encode(text)[:LONGEST] for text in texts]
        width = max(map(len, rows))
        ids = torch.zeros(ROWS, width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        result.append((ids, (ids != 0).long(), torch.arange(ROWS) % 2))
    return result


def theirs(training: bool) -> Callable[[Batch], float]:
    """BertForSequenceClassification as its documentation uses it."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(attention_probs_dropout_prob=0.0))
    if not training:
        model = model.to(torch.bfloat16).eval()

        @torch.inference_mode()
        def infer(batch: Batch) -> float:
            return float(model(batch[0], attention_mask=batch[1]).logits.sum())

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(batch[0], attention_mask=batch[1], labels=batch[2]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def ours(training: bool) -> Callable[[Batch], float]:
    """The same network and optimizer here."""
    import torch
    import torch.nn.functional as F

    from inkstone import device
    from inkstone.models import bert
    from inkstone.training.config import TrainingConfig
    from inkstone.training.optim import Optimizers

    device.tune_allocator()
    torch.manual_seed(0)
    model = bert.Model(bert.Config(head="sequence"))
    model.compute_dtype = torch.bfloat16
    if not training:
        model = model.to(torch.bfloat16).eval()

        @torch.inference_mode()
        def infer(batch: Batch) -> float:
            return float(model(batch[0], attention_mask=batch[1]).sum())

        return infer
    optimizers = Optimizers(model, TrainingConfig(optimizer="adamw", lr=2e-5, weight_decay=0.01))

    def step(batch: Batch) -> float:
        loss = F.cross_entropy(model(batch[0], attention_mask=batch[1]).float(), batch[2])
        loss.backward()
        optimizers.step(1.0, max(1.0, float(optimizers.gradient_norm())))
        return float(loss.detach())

    return step


def one(side: str, job: str) -> None:
    """A pass over the batches for every line of stdin; tells its seconds and what was in them."""
    data = batches(job)
    step = (ours if side == "inkstone" else theirs)("fine" in job)
    tokens = sum(int(mask.sum()) for _, mask, _ in data)
    places = sum(mask.numel() for _, mask, _ in data)
    for _ in sys.stdin:
        start = time.perf_counter()
        for batch in data:
            step(batch)
        rate = ROWS * len(data) / (time.perf_counter() - start)
        print(json.dumps({"rate": rate, "padding": 1 - tokens / places}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=JOBS, default=JOBS)
    rows = []
    for job in parser.parse_args().only:
        workers = {side: common.Worker(__spec__.name, side, job) for side in SIDES}
        told: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(TURNS[job]):
            for side, worker in workers.items():
                told[side] += [worker.step() for _ in range(TURN)][1:]
        for worker in workers.values():
            worker.end()
        rates = {side: statistics.median(t["rate"] for t in told[side]) for side in SIDES}
        rows.append(
            {
                "job": job,
                **{f"{side} (rows/s)": rates[side] for side in SIDES},
                "ratio": rates["inkstone"] / rates["transformers"],
                "padding": told["inkstone"][0]["padding"],
            }
        )
        print(rows[-1], flush=True)
    common.report("bert_base", rows)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in SIDES:
        one(*sys.argv[1:])
    else:
        main()
