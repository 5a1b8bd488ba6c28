"""Sixteen streams with adapters on one base, beside a merged model for each adapter.

    python -m benchmarks.adapters [--rounds N] [--streams N] [--only WIDTH ...] [--tiny]

GPT-2 124M, whose weights are drawn (speed does not depend on them), and LoRA adapters of rank 16 on
all maps of its layers. "Together": the streams take the adapters in turn and share one engine, as
`inkstone serve --adapter` does. "Merged": the only other way to have an adapter's answers, a whole
model for each; those that share two threads answer one after the other, each its own streams.
Tokens a second are all tokens of the answers over the time from the first prompt to the last token.
Memory is the most that a process had. Each row is a process of its own; they take turns.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from typing import Any

from benchmarks import common
from benchmarks.decoding import model

PROMPT, ANSWER, RANK = 128, 64, 16
ADAPTERS = (0, 1, 8)
WIDTHS = ("bf16", "int8")
TINY: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 4, "vocab_size": 512}


def adapter(network: Any, seed: int) -> dict[str, Any]:
    """Drawn changes of all maps of the layers."""
    import torch

    from inkstone.nn import lora

    chance = torch.Generator().manual_seed(seed)
    pairs = {}
    for name, linear in lora.maps(network).items():
        d_out, d_in = linear.weight.shape
        a, b = (torch.randn(shape, generator=chance) for shape in ((RANK, d_in), (d_out, RANK)))
        pairs[name] = lora.Pair(0.02 * a, 0.02 * b, 2.0)
    return pairs


def at_width(network: Any, width: str) -> Any:
    """The network as it is served."""
    import torch

    from inkstone.compression.quantize import choose, quantize_model
    from inkstone.nn import quantized

    if width == "int8":
        quantized.SHRUNK = ()  # how well it is rounded changes no speed
        return quantize_model(network, choose(network, 8))
    network.compute_dtype = torch.bfloat16
    return network


def engines(way: str, width: str, n_adapters: int, tiny: bool) -> list[tuple[Any, list[Any]]]:
    """Engines, and the names by which the streams of each ask in turn."""
    from inkstone.inference.engine import Engine
    from inkstone.models import gpt2
    from inkstone.nn import lora

    network = gpt2.Model(gpt2.Config(**TINY)).eval() if tiny else model()
    adapters = {str(seed): adapter(network, seed) for seed in range(n_adapters)}
    if way == "together":
        engine = Engine(at_width(network, width), adapters=adapters)
        return [(engine, list(adapters) or [None])]
    found = []
    for pairs in adapters.values():
        own = lora.merged(network)
        lora.put(own, pairs)
        lora.remove(own, keep=True)
        found.append((Engine(at_width(own.eval(), width)), [None]))
    return found


def measure(found: list[tuple[Any, list[Any]]], streams: int) -> dict[str, float]:
    """Tokens a second of all streams, once what is laid out at first is laid out."""
    import torch

    from inkstone.inference.config import SamplingConfig

    def run(n_streams: int, n_tokens: int) -> int:
        told = 0
        config = SamplingConfig(max_tokens=n_tokens, temperature=0.0)
        for engine, names in found:
            for i in range(max(1, n_streams // len(found))):
                prompt = torch.randint(engine.vocab_size, (PROMPT,)).tolist()
                engine.submit(prompt, config, adapter=names[i % len(names)])
            while len(engine):
                told += sum(len(chunk.ids) for chunk in engine.step())
        return told

    run(len(found), 2)
    began = time.perf_counter()
    tokens = run(streams, ANSWER)
    took = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"tokens_per_s": tokens / took, "memory_mb": most / 1024}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--only", nargs="+", default=list(WIDTHS), choices=WIDTHS)
    parser.add_argument("--tiny", action="store_true", help="a small network: does it run at all")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.row:
        way, width, n = given.row
        print(json.dumps(measure(engines(way, width, int(n), given.tiny), given.streams)))
        return
    sides = [(way, width, n) for width in given.only for n in ADAPTERS
             for way in ("together", "merged") if n or way == "together"]  # fmt: skip
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(given.rounds):
        for way, width, n in sides:
            arguments = ["--streams", str(given.streams), "--row", way, width, str(n)]
            arguments += ["--tiny"] * given.tiny
            one = common.child(__spec__.name, *arguments)
            runs.setdefault(f"{way} {width} {n}", []).append(one)
    rows = []
    for way, width, n in sides:
        own = runs[f"{way} {width} {n}"]
        middle = {key: statistics.median(one[key] for one in own) for key in own[0]}
        rows.append({"adapters": n, "weights": width, "way": way} | middle)
    common.report("adapters", rows, runs=runs, streams=given.streams)


if __name__ == "__main__":
    main()
