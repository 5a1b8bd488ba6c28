"""Ten times what the server can answer, for minutes: the rest is turned away at once.

    python -m benchmarks.prove_overload [--seconds N] [--times X] [--most N] [--layers N]

`inkstone serve` answers with a GPT-2 of drawn weights (124M parameters unless told otherwise). Its
capacity is measured first, and again afterwards: as many clients as are answered at once, each
asking again as soon as it has its answer. In between requests come at random moments, `--times` as
many a second as it could answer, whether or not earlier ones were answered. The time to be turned
away runs from the moment when a request was due to the last byte of the 429, so that a client that
is late counts against the server. Throughput is the server's own count of tokens. Client and server
share the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT
from benchmarks.copy_model import tokenizer
from benchmarks.loopback import Client, Served, post, served

PROMPT, ANSWER = 64, 64  # characters, which are tokens; tokens
PATIENCE_S = 300.0
MOST_REJECT_S, LEAST_SHARE, MOST_GROWTH = 0.050, 0.95, 0.05


@dataclass
class Tally:
    """What came of requests, and what the server did meanwhile.

    Attributes:
        statuses: How many got which; "lost" and "hung" among them.
        rejects_s: Time to be turned away, of each.
        lags_s: How late the client itself was.
        tokens_per_s: Of answers.
        memory: Bytes of the server, once a second.
    """

    statuses: Counter[str] = field(default_factory=Counter)
    rejects_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    tokens_per_s: float = 0.0
    memory: list[int] = field(default_factory=list)

    def faults(self) -> int:
        """Requests that were neither answered nor turned away."""
        return sum(n for status, n in self.statuses.items() if status not in ("200", "429"))


def save(folder: Path, **shape: int) -> Path:
    """A GPT-2 of drawn weights that reads bytes."""
    import torch

    from inkstone.checkpoint import save_model
    from inkstone.models import gpt2

    torch.manual_seed(0)
    folder.mkdir()
    save_model(folder, gpt2.Model(gpt2.Config(**shape)), tokenizer())
    return folder


def requests(port: int, first: int) -> Iterator[bytes]:
    """As they are sent; no two begin alike, so that none finds its beginning read already.

    Args:
        port: Of the server.
        first: A number of eight digits; the prompts' beginnings are counted from it.
    """
    place = "#" * 8
    text = place + "".join(random.Random(0).choices("abcdefgh ", k=PROMPT - len(place)))
    body = {"prompt": text, "max_tokens": ANSWER, "temperature": 0, "stream": True}
    before, after = post(port, "/v1/completions", body).split(place.encode())
    return (b"%b%d%b" % (before, number, after) for number in count(first))


async def ask(client: Client, request: bytes, due: float, tally: Tally) -> None:
    """One request, to its end."""
    status = "lost"
    try:
        async with asyncio.timeout(PATIENCE_S):
            connection = await client.connect()
            tally.lags_s.append(time.perf_counter() - due)
            code, headers = await connection.ask(request)
            if code == 200:
                ends = [event async for event in connection.events(headers) if event == "[DONE]"]
                status = "200" if len(ends) == 1 else "lost"
            else:
                _ = [part async for part in connection.body(headers)]
                status = str(code)
            if code == 429:
                tally.rejects_s.append(time.perf_counter() - due)
    except TimeoutError:
        status = "hung"
    except (OSError, asyncio.IncompleteReadError):
        pass
    tally.statuses[status] += 1


async def watch(server: Served, seconds: float, tally: Tally) -> None:
    """What the server does for so long."""
    before, began = await asyncio.to_thread(server.metrics), time.perf_counter()
    tally.memory.append(server.memory())
    while (left := began + seconds - time.perf_counter()) > 0:
        await asyncio.sleep(min(1.0, left))
        tally.memory.append(server.memory())
    after, took = await asyncio.to_thread(server.metrics), time.perf_counter() - began
    tally.tokens_per_s = (after["inkstone_answer_tokens"] - before["inkstone_answer_tokens"]) / took


async def closed(server: Served, clients: int, seconds: float, warm_s: float, first: int) -> Tally:
    """So many clients, each of which asks again once it is answered."""
    client, tally, texts = Client(server.port), Tally(), requests(server.port, first)
    over = False

    async def one() -> None:
        while not over:
            await ask(client, next(texts), time.perf_counter(), tally)

    tasks = [asyncio.create_task(one()) for _ in range(clients)]
    await asyncio.sleep(warm_s)
    await watch(server, seconds, tally)
    over = True
    await asyncio.gather(*tasks)
    client.close()
    return tally


async def opened(server: Served, per_s: float, seconds: float, warm_s: float) -> Tally:
    """Requests that come at random moments, so many a second, whatever becomes of them."""
    client, tally, texts = Client(server.port), Tally(), requests(server.port, 20_000_000)
    chance, tasks = random.Random(1), set[asyncio.Task[None]]()

    async def come() -> None:
        due = time.perf_counter()
        while True:
            due += chance.expovariate(per_s)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(ask(client, next(texts), due, tally))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    coming = asyncio.create_task(come())
    await asyncio.sleep(warm_s)
    await watch(server, seconds, tally)
    coming.cancel()
    await asyncio.gather(*tasks)
    client.close()
    return tally


def prove(
    folder: Path, *, seconds: float = 120.0, warm_s: float = 10.0, times: float = 10.0,
    most: int = 16, threads: int | None = None, **shape: int,
) -> dict[str, Any]:  # fmt: skip
    """Everything that is to be told."""
    options = ("--most", str(most), "--waiting", str(2 * most))
    with served(save(folder / "model", **shape), *options, threads=threads) as server:
        first = asyncio.run(closed(server, most, seconds / 2, warm_s, 10_000_000))
        capacity = first.tokens_per_s / ANSWER
        rate = times * capacity
        over = asyncio.run(opened(server, rate, seconds, warm_s))
        last = asyncio.run(closed(server, most, seconds / 2, warm_s, 80_000_000))
        found = server.metrics()
    alone = (first.tokens_per_s + last.tokens_per_s) / 2
    start, end = over.memory[0], over.memory[-1]
    facts: dict[str, Any] = {
        "shape": shape, "at_once": most, "waiting": 2 * most, "seconds": seconds,
        "capacity_answers_per_s": round(capacity, 3),
        "offered_per_s": round(rate, 3),
        "statuses": dict(over.statuses),
        "reject_ms": _milliseconds(over.rejects_s),
        "client_late_ms": _milliseconds(over.lags_s),
        "tokens_per_s": {"alone, before": round(first.tokens_per_s, 2),
                         "overloaded": round(over.tokens_per_s, 2),
                         "alone, after": round(last.tokens_per_s, 2)},
        "share_of_throughput": round(over.tokens_per_s / alone, 4) if alone else 0.0,
        "memory_mb": {"start": start >> 20, "end": end >> 20, "most": max(over.memory) >> 20,
                      "each_second": [size >> 20 for size in over.memory]},
        "faults": sum(tally.faults() for tally in (first, over, last)) + len(server.faults),
        "open_at_the_end": found["inkstone_waiting"] + found["inkstone_running"],
    }  # fmt: skip
    facts["holds"] = {
        "time to be turned away, p99": facts["reject_ms"].get("p99", math.inf)
        <= 1e3 * MOST_REJECT_S,
        "throughput": facts["share_of_throughput"] >= LEAST_SHARE,
        "memory": end <= (1 + MOST_GROWTH) * start,
        "no fault": not facts["faults"] and not facts["open_at_the_end"],
    }
    return facts


def _milliseconds(times_s: Sequence[float]) -> dict[str, float]:
    """Nearest ranks."""
    ordered = sorted(times_s)
    ranks = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "most": 1.0}
    return {
        name: round(1e3 * ordered[max(0, math.ceil(share * len(ordered)) - 1)], 2)
        for name, share in ranks.items() if ordered
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--most", type=int, default=16)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--threads", type=int, help="of the server; as many as it likes by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        facts = prove(
            Path(name), seconds=given.seconds, times=given.times, most=given.most,
            threads=given.threads, n_layers=given.layers,
        )  # fmt: skip
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    (ROOT / "docs" / "proofs" / "overload.json").write_text(text, encoding="utf-8")
    sys.exit(not all(facts["holds"].values()))


if __name__ == "__main__":
    main()
