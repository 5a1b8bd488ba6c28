"""A training step of GPT-2 124M, 4 × 256 tokens, AdamW: Inkstone beside transformers, 2 threads.

    python -m benchmarks.gpt2_step

Each side runs in a process of its own, in turn, several rounds; the figure is the median step of
the median round (fp32, for scale, has one). Reach: 2.2 × transformers under bf16 autocast, 60 % of
the matmul peak, and no more memory.
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

ROWS, LENGTH, STEPS, ROUNDS = 4, 256, 12, 3
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
    """The step that `inkstone train` takes, through its Trainer."""
    import torch

    from inkstone import device
    from inkstone.corpora.batches import Batch
    from inkstone.models import gpt2
    from inkstone.training.config import TrainingConfig
    from inkstone.training.loop import Trainer
    from inkstone.training.plan import Plan

    device.tune_allocator()
    torch.manual_seed(0)
    model = gpt2.Model(gpt2.PRESETS["gpt2"])
    model.compute_dtype = device.training_dtype("cpu")
    ids = torch.randint(0, 50257, (ROWS, LENGTH + 1))
    batch = Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous())

    class Same:
        epoch = 0.0

        def __next__(self) -> Batch:
            return batch

    config = TrainingConfig(
        max_steps=10**6, micro_batch_size=ROWS, optimizer="adamw", lr=1e-4, warmup_steps=0,
        betas=(0.9, 0.999), weight_decay=0.01, schedule="wsd", decay_fraction=0.0,
    )  # fmt: skip
    stream: Any = Same()
    trainer = Trainer(model, stream, config, Path("."), save_model=lambda folder: None)
    trainer.plan = Plan(config, Path("/nonexistent"))

    def step() -> float:
        result = trainer._step(trainer._loss)
        assert result is not None
        return result[0]

    return step


def one(side: str) -> None:
    """Time one side in this process."""
    step = ours() if side == "inkstone" else theirs(side.split()[1])
    losses = [step() for _ in range(3)]
    times = []
    for _ in range(STEPS):
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = statistics.median(times)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "last_loss": losses[-1]}))


def peak_flops() -> None:
    """The fastest matmul this machine does: the floor of every step."""
    from inkstone import device

    machine = device.measure("cpu", 3.0)
    print(json.dumps({"gflops": machine.matmul_gflops}))


def main() -> None:
    from inkstone.models import gpt2

    flops = 3 * gpt2.flops_per_token(gpt2.PRESETS["gpt2"], LENGTH) * ROWS * LENGTH
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    peaks = []
    for number in range(ROUNDS):
        peaks.append(max(common.child(__spec__.name, "peak")["gflops"].values()))
        for side in SIDES[1:] if number else SIDES:  # fp32 is there for scale only
            runs[side].append(common.child(__spec__.name, side))
    peak = max(peaks)
    rows = []
    for side in SIDES:
        seconds = statistics.median(r["seconds"] for r in runs[side])
        rows.append(
            {
                "side": side,
                "tokens/s": ROWS * LENGTH / seconds,
                "share of matmul peak": flops / seconds / (peak * 1e9),
                "peak memory (GB)": max(r["peak_bytes"] for r in runs[side]) / 1e9,
                "loss after 15 steps": runs[side][0]["last_loss"],
            }
        )
    ratio = rows[2]["tokens/s"] / rows[1]["tokens/s"]
    common.report(
        "gpt2_step", rows,
        ratio_to_bf16=ratio, matmul_peak_gflops=peak, gflop_per_step=flops / 1e9,
    )  # fmt: skip


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "peak":
        peak_flops()
    else:
        one(sys.argv[1])
