"""A training step of GPT-2 124M, 4 × 256 tokens, AdamW: Inkstone beside transformers, 2 threads.

    python -m benchmarks.gpt2_step

Each side is a process of its own. They take turns of four steps, so that a machine whose speed
drifts (shared ones do) slows all of them alike; the first step of a turn finds the caches full of
another's numbers and does not count. The figure is the median step.
Reach: 2.2 × transformers under bf16 autocast, 60 % of the matmul peak, and no more memory.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common

ROWS, LENGTH, TURNS, TURN = 4, 256, 7, 4
SIDES = ("transformers fp32", "transformers bf16", "inkstone")


def theirs(precision: str) -> Callable[[], float]:
    """transformers as its documentation trains: autocast, torch.optim.AdamW, clipping at 1."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, 50257, (ROWS, LENGTH))

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def ours() -> Callable[[], float]:
    """GPT-2 124M by our Trainer."""
    import torch

    from inkstone import device
    from inkstone.models import gpt2

    device.tune_allocator()
    torch.manual_seed(0)
    model = gpt2.Model(gpt2.PRESETS["gpt2"])
    model.compute_dtype = device.training_dtype("cpu")
    return step_of(model, ROWS, LENGTH, betas=(0.9, 0.999), weight_decay=0.01)


def step_of(model: Any, rows: int, length: int, **settings: Any) -> Callable[[], float]:
    """The step that `inkstone train` takes, through its Trainer, on one batch of random words."""
    import torch

    from inkstone.corpora.batches import Batch
    from inkstone.training.config import TrainingConfig
    from inkstone.training.loop import Trainer
    from inkstone.training.plan import Plan

    ids = torch.randint(0, model.config.vocab_size, (rows, length + 1))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    class Same:
        epoch = 0.0

        def __next__(self) -> Batch:
            return batch

    config = TrainingConfig(
        max_steps=10**6, micro_batch_size=rows, optimizer="adamw", lr=1e-4, warmup_steps=0,
        schedule="wsd", decay_fraction=0.0, **settings,
    )  # fmt: skip
    stream: Any = Same()
    trainer = Trainer(model, stream, config, Path("."), save_model=lambda folder: None)
    trainer.plan = Plan(config, Path("/nonexistent"))
    loss = trainer._compiled() if config.compile else trainer._loss

    def step() -> float:
        result = trainer._step(loss)
        assert result is not None
        return result[0]

    return step


def one(side: str) -> None:
    """A step for every line of stdin; tells its seconds, the loss and the peak memory so far."""
    work = peak if side == "peak" else ours() if side == "inkstone" else theirs(side.split()[1])
    for _ in sys.stdin:
        start = time.perf_counter()
        value = work()
        seconds = time.perf_counter() - start
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "value": value, "bytes": memory}), flush=True)


def peak() -> float:
    """The fastest matmul that this machine does, in GFLOP/s: the floor of every step."""
    from inkstone import device

    return max(device.measure.__wrapped__("cpu", 1.0).matmul_gflops.values())


def main() -> None:
    from inkstone.models import gpt2

    flops = 3 * gpt2.flops_per_token(gpt2.PRESETS["gpt2"], LENGTH) * ROWS * LENGTH
    workers = {side: common.Worker(__spec__.name, side) for side in ("peak", *SIDES)}
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in workers}
    for turn in range(TURNS):
        for side, worker in workers.items():
            if side != SIDES[0] or turn in (0, TURNS - 1):  # fp32 is there for scale only
                told[side] += [worker.step() for _ in range(TURN if side in SIDES else 1)]
    for worker in workers.values():
        worker.end()
    best = max(t["value"] for t in told["peak"])
    rows, rates = [], {}
    for side in SIDES:
        seconds = statistics.median(
            t["seconds"] for i, t in enumerate(told[side]) if i >= TURN and i % TURN
        )
        rates[side] = ROWS * LENGTH / seconds
        rows.append(
            {
                "side": side,
                "tokens/s": rates[side],
                "share of matmul peak": flops / seconds / (best * 1e9),
                "peak memory (GB)": max(t["bytes"] for t in told[side]) / 1e9,
                **(
                    {"loss after 15 steps": told[side][14]["value"]} if len(told[side]) > 14 else {}
                ),
            }
        )
    common.report(
        "gpt2_step", rows,
        ratio_to_bf16=rates["inkstone"] / rates["transformers bf16"],
        matmul_peak_gflops=best, gflop_per_step=flops / 1e9,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    else:
        one(sys.argv[1])
