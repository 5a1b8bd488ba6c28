"""Training steps on one GPU: GPT-2 124M and Llama 3.2 1B, beside transformers and nanoGPT.

    python -m benchmarks.gpu_step [--nanogpt DIR] [--models gpt2] [--seconds 20]

AdamW, bf16, torch.compile on every side, rows of 1,024 (GPT-2) and 2,048 tokens; the figure is
the median step after those that compile. Ours is the step that `inkstone train` takes: losses read
and gradients clipped at every step; "exact" is the same with kernels that repeat to the bit, which
a run uses. The others as their documentation has it: autocast and fused AdamW. Utilisation
is that of needed operations (attention to what may be seen, nothing recomputed) over the bf16
matmul rate that is measured beside it. Each side is a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks import common
from benchmarks.gpt2_step import step_of

SHAPES = {"gpt2": ("gpt2", 32, 1024), "llama-3.2-1b": ("llama", 8, 2048)}  # family, rows, length
Step = Callable[[], float]


def ours(name: str, side: str) -> Step:
    import torch

    from inkstone import registry
    from inkstone.training.foundations import repeatable

    family, rows, length = SHAPES[name]
    module = registry.load("models", family)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = module.Model(module.PRESETS[name])
    model.compute_dtype = torch.bfloat16
    if "exact" in side:
        contextlib.ExitStack().enter_context(repeatable(model.device))
    return step_of(model, rows, length, weight_decay=0.1, compile="eager" not in side)


def theirs(name: str, side: str) -> Step:
    """transformers under autocast, compiled."""
    import torch
    import transformers

    family, rows, length = SHAPES[name]
    with torch.device("cuda"):
        if family == "gpt2":
            shape: Any = transformers.GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
        else:
            shape = transformers.LlamaConfig(
                vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
                max_position_embeddings=131072,
            )  # fmt: skip
        model = transformers.AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa")
        ids = torch.randint(0, shape.vocab_size, (rows, length))
    model.config.use_cache = False
    compiled = torch.compile(model)

    def loss() -> Any:
        return compiled(input_ids=ids, labels=ids).loss

    return _autocast(model, loss)


def nanogpt(folder: str) -> Step:
    import torch

    sys.path.insert(0, folder)
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    _, rows, length = SHAPES["gpt2"]
    with torch.device("cuda"):
        model = GPT(GPTConfig(block_size=length, vocab_size=50304, dropout=0.0, bias=True))
        ids = torch.randint(0, 50257, (rows, length + 1))
    compiled = torch.compile(model)
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    return _autocast(model, lambda: compiled(x, y)[1])


def _autocast(model: Any, loss: Callable[[], Any]) -> Step:
    import torch

    torch.set_float32_matmul_precision("high")
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    model.train()

    def step() -> float:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach())

    return step


def one(name: str, side: str, seconds: float, folder: str) -> None:
    """Run one side for a while; tells its median step and its peak memory."""
    import torch

    if side == "nanoGPT":
        step = nanogpt(folder)
    else:
        step = (ours if side.startswith("inkstone") else theirs)(name, side)
    began = time.perf_counter()
    for _ in range(5):
        first = step()
    prepared = time.perf_counter() - began
    spent: list[float] = []
    while sum(spent) < seconds:
        start = time.perf_counter()
        last = step()
        torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "seconds": statistics.median(spent), "steps": len(spent), "prepared": prepared,
                "loss": [first, last], "bytes": torch.cuda.max_memory_allocated(),
            }
        )
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", default="", help="a checkout of nanoGPT")
    parser.add_argument("--models", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--sides", nargs="+", help="all by default")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, each side")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        return one(*given.one, given.seconds, given.nanogpt)

    from inkstone import device, registry

    peak = device.measure("cuda", 2.0)
    rows = []
    for name in given.models:
        family, batch, length = SHAPES[name]
        module = registry.load("models", family)
        flops = 3 * module.flops_per_token(module.PRESETS[name], length)
        sides = ["inkstone", "inkstone, exact", "inkstone, exact, eager", "transformers"]
        sides += ["nanoGPT"] if given.nanogpt and name == "gpt2" else []
        for side in [s for s in sides if not given.sides or s in given.sides]:
            command = [
                sys.executable, "-m", __spec__.name, "--one", name, side,
                "--seconds", str(given.seconds), "--nanogpt", given.nanogpt,
            ]  # fmt: skip
            done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True)
            if done.returncode:
                print(f"{name}, {side}: failed", file=sys.stderr)
                continue
            told = json.loads(done.stdout.splitlines()[-1])
            rate = batch * length / told["seconds"]
            rows.append(
                {
                    "model": name, "side": side, "tokens/s": rate,
                    "share of matmul peak": rate * flops / (peak.peak_gflops * 1e9),
                    "peak memory (GB)": told["bytes"] / 1e9,
                    "first 5 steps (s)": told["prepared"], "loss": str(told["loss"]),
                }
            )  # fmt: skip
            print(rows[-1], file=sys.stderr, flush=True)
    common.report("gpu_step", rows, gpu=peak.name, matmul_peak_tflops=peak.peak_gflops / 1e3)


if __name__ == "__main__":
    main()
