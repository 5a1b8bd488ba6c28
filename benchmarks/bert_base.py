"""BERT-base: Inkstone beside transformers, inference and fine-tuning, 2 threads.

    python -m benchmarks.bert_base

Full-length input is 16 rows of 128 tokens; ragged input is 16 IMDb reviews a batch, cut at 512
tokens, as they come, which transformers pads to the longest of the batch. Each side runs in a
process of its own, in turn, several rounds; the figure is the median batch of the median round.
transformers runs as its documentation says, in bf16 (weights in bf16 for inference, autocast for
training). Reach: 1.4 × on full-length input, 2 × on ragged batches.
"""

from __future__ import annotations

import gzip
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common

ROWS, LENGTH, LONGEST, ROUNDS = 16, 128, 512, 3
JOBS = ("inference", "fine-tuning", "ragged inference", "ragged fine-tuning")
SIDES = ("transformers", "inkstone")
Batch = tuple[Any, Any, Any]


def batches(job: str) -> list[Batch]:
    """Ids, masks and labels: random words, or reviews in the order of the file."""
    import torch

    generator = torch.Generator().manual_seed(0)
    if not job.startswith("ragged"):
        ids = torch.randint(1000, 30000, (ROWS, LENGTH), generator=generator)
        return [(ids, torch.ones_like(ids), torch.arange(ROWS) % 2)]
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
    model = BertForSequenceClassification(BertConfig(num_labels=2))
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
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)

    def step(batch: Batch) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch[0], attention_mask=batch[1]).float(), batch[2])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def one(side: str, job: str) -> None:
    """Time one side in this process: seconds for each pass over the batches."""
    data = batches(job)
    step = (ours if side == "inkstone" else theirs)("fine" in job)
    step(data[0])
    times = []
    for _ in range(8 // len(data) + 1):
        start = time.perf_counter()
        for batch in data:
            step(batch)
        times.append(time.perf_counter() - start)
    tokens = sum(int(mask.sum()) for _, mask, _ in data)
    places = sum(mask.numel() for _, mask, _ in data)
    rate = ROWS * len(data) / statistics.median(times)
    print(json.dumps({"rate": rate, "tokens": tokens, "places": places, "rows": ROWS * len(data)}))


def main() -> None:
    rows = []
    for job in JOBS:
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
        for _ in range(ROUNDS):
            for side in SIDES:
                found[side].append(common.child(__spec__.name, side, job))
        rates = {side: statistics.median(r["rate"] for r in found[side]) for side in SIDES}
        first = found["inkstone"][0]
        rows.append(
            {
                "job": job,
                **{f"{side} (rows/s)": rates[side] for side in SIDES},
                "ratio": rates["inkstone"] / rates["transformers"],
                "padding": 1 - first["tokens"] / first["places"],
            }
        )
    common.report("bert_base", rows)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        one(*sys.argv[1:])
