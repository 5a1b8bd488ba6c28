"""GPT-2 124M answers: Inkstone beside llama.cpp and transformers, 2 threads, one stream.

    python -m benchmarks.decoding [--rounds N] [--only WIDTH ...]

Decoding: 128 tokens, each the likeliest, after a prompt of 32. Prefill: the scores behind a prompt
of 512. Weights are drawn (speed does not depend on them); ours are compressed by
`inkstone compress`' rounding, llama.cpp reads our own GGUF export of the same network, in which
the matrix that scores words has 8 bits at q4_0, and so has ours at int4; a second row has 4 bits
there, too. Every side and width is a process of its own; they take turns, and the figure is the
median of all rounds. llama.cpp is llama-cpp-python, compiled for this processor (`make peers`).

The floor of decoding is the bytes of the weights over the bandwidth that reading with two threads
gets here, measured in the same run; of prefill, the multiplications over what two threads multiply
in vectors (bf16 pairs, or bytes).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common

PROMPT, ANSWER, LONG = 32, 128, 512
WIDTHS = {  # ours, and llama.cpp's of as many bits
    "bf16": "f16", "int8": "q8_0", "int4": "q4_0", "int4, head too": "q4_0", "fp32": "",
}  # fmt: skip
PEERS = ("transformers fp32", "transformers bf16")


def model() -> Any:
    """GPT-2 124M with drawn weights."""
    import torch

    from inkstone.models import gpt2

    torch.manual_seed(0)
    return gpt2.Model(gpt2.Config()).eval()


def ours(width: str) -> dict[str, float]:
    """Seconds a token of decoding, and of a whole prefill, by the engine that serves."""
    import torch

    from inkstone.compression.quantize import choose, quantize_model
    from inkstone.inference.config import SamplingConfig
    from inkstone.inference.engine import Engine
    from inkstone.nn import quantized

    network = model()
    bits = {"int8": 8, "int4": 4, "int4, head too": 4}.get(width)
    if bits is not None:
        quantized.SHRUNK = ()  # how well it is rounded changes no speed
        choice = choose(network, bits)
        if width == "int4, head too":
            choice.bits["embed"] = 4
        network = quantize_model(network, choice)
    elif width == "bf16":
        network.compute_dtype = torch.bfloat16
    engine = Engine(network, tokens_per_step=LONG)

    def run(length: int, answer: int) -> list[float]:
        prompt = torch.randint(50257, (length,)).tolist()
        engine.submit(prompt, SamplingConfig(max_tokens=answer, temperature=0.0))
        times = []
        while len(engine):
            began = time.perf_counter()
            engine.step()
            times.append(time.perf_counter() - began)
        return times

    return _measured(lambda: run(PROMPT, ANSWER)[1:], lambda: run(LONG, 1))


def llama_cpp(path: str) -> dict[str, float]:
    """The same by llama.cpp."""
    import llama_cpp as binding
    import numpy as np

    network = binding.Llama(
        path, n_ctx=1024, n_batch=LONG, n_ubatch=LONG, n_threads=common.THREADS,
        n_threads_batch=common.THREADS, verbose=False,
    )  # fmt: skip
    chance = np.random.default_rng(0)

    def read(ids: list[int]) -> float:
        began = time.perf_counter()
        network.eval(ids)
        scores = binding.llama_get_logits(network.ctx)
        best = int(np.ctypeslib.as_array(scores, (network.n_vocab(),)).argmax())
        assert best >= 0
        return time.perf_counter() - began

    def decode() -> list[float]:
        network.reset()
        read(chance.integers(0, 50257, PROMPT).tolist())
        return [read([int(chance.integers(0, 50257))]) for _ in range(ANSWER - 1)]

    def prefill() -> list[float]:
        network.reset()
        return [read(chance.integers(0, 50257, LONG).tolist())]

    return _measured(decode, prefill)


def transformers(dtype: str) -> dict[str, float]:
    """The same by transformers, as its documentation generates."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config()).eval()
    if dtype == "bf16":
        network = network.to(torch.bfloat16)

    @torch.inference_mode()
    def run(length: int, answer: int) -> list[float]:
        ids, past, times = torch.randint(50257, (1, length)), None, []
        for _ in range(answer):
            began = time.perf_counter()
            out = network(ids, past_key_values=past, use_cache=True, logits_to_keep=1)
            ids, past = out.logits[:, -1].argmax(-1, keepdim=True), out.past_key_values
            times.append(time.perf_counter() - began)
        return times

    return _measured(lambda: run(PROMPT, ANSWER)[1:], lambda: run(LONG, 1))


def _measured(
    decode: Callable[[], list[float]], prefill: Callable[[], list[float]]
) -> dict[str, float]:
    decode(), prefill()
    return {
        "decode_s": statistics.median(decode() + decode()),
        "prefill_s": statistics.median(prefill() + prefill() + prefill()),
    }


def bandwidth() -> dict[str, float]:
    """Bytes a second that two threads read of more memory than the caches hold."""
    import torch

    memory = torch.ones(1 << 28, dtype=torch.int8).view(torch.int64)
    times = []
    for _ in range(8):
        began = time.perf_counter()
        memory.sum()
        times.append(time.perf_counter() - began)
    return {"bytes_per_s": memory.numel() * 8 / statistics.median(times)}


SIDES: dict[str, Callable[[str], dict[str, float]]] = {
    "ours": ours, "llama.cpp": llama_cpp, "transformers": transformers,
    "bandwidth": lambda _: bandwidth(),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=list(WIDTHS), choices=list(WIDTHS))
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(SIDES[given.side[0]](given.side[1])))
        return
    with tempfile.TemporaryDirectory() as name:
        _compare(given.only, given.rounds, Path(name))


def _compare(widths: list[str], rounds: int, folder: Path) -> None:
    from inkstone.compression.export import Source, export
    from inkstone.tokenizers.tokenizer import Tokenizer

    words = Tokenizer.load(common.SHARED_DATA / "tokenizers" / "gpt2" / "tokenizer.json")
    source = Source(folder / "gpt2", model(), words)
    kinds = sorted({WIDTHS[width] for width in widths} - {""})
    files = {kind: export(source, folder / f"{kind}.gguf", "gguf", kind=kind) for kind in kinds}
    jobs = [("bandwidth", "")]
    jobs += [("ours", width) for width in widths]
    jobs += [("llama.cpp", str(files[kind].path)) for kind in kinds]
    jobs += [("transformers", name.split()[1]) for name in PEERS]
    found: dict[tuple[str, str], list[dict[str, float]]] = {job: [] for job in jobs}
    for _ in range(rounds):
        for job in jobs:
            found[job].append(common.child("benchmarks.decoding", "--side", *job))
            print(*job, found[job][-1], file=sys.stderr, flush=True)
    rows = []
    for width in widths:
        kind = WIDTHS[width]
        mine = found["ours", width]
        other = found["llama.cpp", str(files[kind].path)] if kind else []
        for what, key, tokens in (("decode", "decode_s", 1), ("prefill", "prefill_s", LONG)):
            row: dict[str, Any] = {"job": what, "width": width}
            row["inkstone, tokens/s"] = tokens / _median(mine, key)
            if other:
                row["llama.cpp"], row["tokens/s"] = kind, tokens / _median(other, key)
                row["ratio"] = _median(other, key) / _median(mine, key)
            rows.append(row)
    for name in PEERS:
        side = found["transformers", name.split()[1]]
        rows.append({"job": "decode", "width": name, "tokens/s": 1 / _median(side, "decode_s")})
        rows.append(
            {"job": "prefill", "width": name, "tokens/s": LONG / _median(side, "prefill_s")}
        )
    read = statistics.median(f["bytes_per_s"] for f in found["bandwidth", ""])
    raw = {"/".join(job): values for job, values in found.items()}
    common.report("decoding", rows, read_gb_per_s=read / 1e9, runs=raw)


def _median(values: list[dict[str, float]], key: str) -> float:
    return statistics.median(value[key] for value in values)


if __name__ == "__main__":
    main()
