"""Sixteen people ask at once: Inkstone's server beside llama.cpp's, GPT-2 124M, 2 threads.

    python -m benchmarks.serving --llama-server PATH [--streams N] [--rounds N] [--only SIDE ...]

Each of 16 clients asks twice for 128 tokens (greedy, streamed) after a prompt of 128 words of
WikiText-2, all different. Tokens are counted by the servers (`usage`). Total tokens a second are
those of all answers over the time from the first request to the last token; the time to a first
token is that of the first piece of text. Weights are drawn, and both sides have the same ones:
ours compressed by `inkstone compress`, theirs exported by `inkstone export`. Servers take turns,
one at a time, on the machine that asks, too. llama.cpp's server is `llama-server` of its source
distribution, compiled for this processor:
`cmake -B build -DGGML_NATIVE=ON && cmake --build build --target llama-server`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks import common
from benchmarks.decoding import model

WORDS, ANSWER, ASKED = 128, 128, 2
OURS, THEIRS = ("bf16", "int8", "int4"), ("f16", "q8_0", "q4_0")
PATIENCE_S = 120


def prompts(n: int) -> list[str]:
    """Of WORDS words each, one behind the other in WikiText-2's test."""
    words = (common.SHARED_DATA / "wikitext-2" / "test.txt").read_text(encoding="utf-8").split()
    return [" ".join(words[i * WORDS : (i + 1) * WORDS]) for i in range(n)]


async def ask(client: aiohttp.ClientSession, prompt: str) -> tuple[float, int]:
    """Seconds to the first piece of text, and tokens of the answer."""
    body = {
        "prompt": prompt, "max_tokens": ANSWER, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, tokens = time.perf_counter(), None, 0
    async with client.post("/v1/completions", json=body) as response:
        response.raise_for_status()
        async for raw in response.content:
            line = raw.decode().strip()
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            told = json.loads(line[6:])
            if first is None and told["choices"] and told["choices"][0].get("text"):
                first = time.perf_counter() - began
            tokens = (told.get("usage") or {}).get("completion_tokens", tokens)
    assert first is not None
    return first, tokens


async def load(url: str, streams: int) -> dict[str, Any]:
    """All clients at once, each one request after the other."""
    texts = prompts(streams * ASKED + 1)
    patience = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0, force_close=True)  # theirs ends idle ones
    async with aiohttp.ClientSession(url, timeout=patience, connector=connector) as client:
        await ask(client, texts[-1])

        async def one(mine: Sequence[str]) -> list[tuple[float, int]]:
            return [await ask(client, prompt) for prompt in mine]

        began = time.perf_counter()
        parts = await asyncio.gather(*(one(texts[i:-1:streams]) for i in range(streams)))
        took = time.perf_counter() - began
    answers = [answer for part in parts for answer in part]
    tokens = [n for _, n in answers]
    return {
        "tokens_per_s": sum(tokens) / took, "fewest_tokens": min(tokens),
        "first_token_s": statistics.median(t for t, _ in answers),
    }  # fmt: skip


@contextlib.contextmanager
def served(command: Sequence[str]) -> Iterator[str]:
    """The address of a server while it runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": str(common.THREADS)}
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, cwd=common.ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v1/models") as got:
                if got.status == 200:
                    break
            if process.poll() is not None or time.monotonic() > end:
                sys.exit(f"{command[0]} did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-server", required=True)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[*OURS, *THEIRS], choices=[*OURS, *THEIRS])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        commands = _commands(Path(name), given.only, given.llama_server, given.streams)
        found: dict[str, list[dict[str, Any]]] = {side: [] for side in commands}
        for _ in range(given.rounds):
            for side, command in commands.items():
                with served(command) as url:
                    found[side].append(asyncio.run(load(url, given.streams)))
                print(side, found[side][-1], file=sys.stderr, flush=True)
    rows = []
    for side, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        who = "Inkstone" if side in OURS else "llama.cpp"
        rows.append({"server": who, "weights": side, "streams": given.streams, **middle})
    common.report("serving", rows, runs=found)


def _commands(folder: Path, sides: list[str], server: str, streams: int) -> dict[str, list[str]]:
    """How each server is started."""
    from inkstone import api
    from inkstone.checkpoint import save_model
    from inkstone.compression.export import Source, export
    from inkstone.nn import quantized
    from inkstone.tokenizers.tokenizer import Tokenizer

    words = Tokenizer.load(common.SHARED_DATA / "tokenizers" / "gpt2" / "tokenizer.json")
    network = model()
    large = folder / "gpt2"
    large.mkdir()
    save_model(large, network, words)
    quantized.SHRUNK = ()  # how well it is rounded changes no speed
    commands = {}
    for side in sides:
        if side in OURS:
            api.compress(large, side, folder / side)
            commands[side] = [sys.executable, "-m", "inkstone", "serve", str(folder / side), "-q"]
            continue
        done = export(Source(large, network, words), folder / f"{side}.gguf", "gguf", kind=side)
        commands[side] = [
            server, "-m", str(done.path), "--parallel", str(streams), "--ctx-size",
            str(1024 * streams), "--threads", "2", "--threads-batch", "2", "--no-webui",
        ]  # fmt: skip
    return commands


if __name__ == "__main__":
    main()
