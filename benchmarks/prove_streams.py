"""Ten thousand streams, a third of them left at a random moment: none lost, doubled or crossed.

    python -m benchmarks.prove_streams [--streams N] [--at-once N] [--seed N]

`inkstone serve` answers with the model of `copy_model.py`, which says the nonce at the end of its
prompt again and again. Every stream has a nonce of its own behind a beginning that it may share
with others, so that a token out of another stream's pages or queue is seen at once. What is asked
for and when a client leaves follows from the seed: while it waits, before the first token, after a
number of events; by hanging up or by a reset.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import copy_model
from benchmarks.common import ROOT
from benchmarks.loopback import Client, Served, post, served

MOST, PATIENCE_S = 64, 300.0
LEAVERS, WHOLE = 0.33, 0.1  # shares: of clients that leave, and of answers that are no stream
BEGINNINGS = ("", "Once upon a time there was ", "It is a truth universally acknowledged, " * 3)


@dataclass(frozen=True)
class Asked:
    """One request, and what its client will do.

    Attributes:
        nonce: What has to come back.
        prompt: Ends with it.
        tokens: Of the answer.
        stream: Whether it comes as events.
        leaves_after: Events that are read before the client leaves; −1: it leaves without reading
            anything; None: it stays.
        reset: How it leaves.
    """

    nonce: str
    prompt: str
    tokens: int
    stream: bool
    leaves_after: int | None
    reset: bool

    @classmethod
    def drawn(cls, chance: random.Random) -> Asked:
        """From a source of chance."""
        nonce = "".join(chance.choices(string.ascii_letters, k=copy_model.NONCE))
        tokens = chance.randint(1, 64)
        leaves = chance.random() < LEAVERS
        return cls(
            nonce, chance.choice(BEGINNINGS) + nonce, tokens, chance.random() >= WHOLE,
            chance.randint(-1, 8) if leaves else None, chance.random() < 0.5,
        )  # fmt: skip

    def request(self, port: int) -> bytes:
        """What is sent."""
        body: dict[str, Any] = {"prompt": self.prompt, "max_tokens": self.tokens, "temperature": 0}
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return post(port, "/v1/completions", body)

    def wrong(self, told: Sequence[dict[str, Any]]) -> str | None:
        """What is wrong with a complete answer: its objects, without the end mark."""
        choices = [choice for one in told for choice in one["choices"]]
        text = "".join(choice["text"] for choice in choices)
        reasons = [c["finish_reason"] for c in choices if c["finish_reason"] is not None]
        usages = [one["usage"] for one in told if one.get("usage")]
        used = {"prompt_tokens": len(self.prompt) + 1, "completion_tokens": self.tokens}
        used["total_tokens"] = sum(used.values())
        if text != copy_model.answer(self.nonce, self.tokens):
            return f"crossed: {text!r} for {self.nonce!r}"
        if reasons != ["length"] or choices[-1]["finish_reason"] is None:
            return f"ends: {reasons}"
        if usages != [used]:
            return f"usage: {usages} for {used}"
        return None if len({one["id"] for one in told}) == 1 else "several names"


@dataclass
class Tally:
    """What came of all requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    names: Counter[str] = field(default_factory=Counter)


async def follow(client: Client, asked: Asked, tally: Tally) -> None:
    """One request from its beginning to its end."""
    connection = await client.connect()
    if asked.leaves_after == -1:
        connection.writer.write(asked.request(client.port))
        await asyncio.sleep(0)
        connection.close(reset=asked.reset)
        tally.outcomes["left unread"] += 1
        return
    status, headers = await connection.ask(asked.request(client.port))
    if status != 200:
        tally.wrong.append(f"status {status}")
        return
    told: list[dict[str, Any]] = []
    ends = 0
    if not asked.stream:
        told = [json.loads("".join([part.decode() async for part in connection.body(headers)]))]
        ends = 1
    else:
        async for event in connection.events(headers):
            if event == "[DONE]":
                ends += 1
                continue
            told.append(json.loads(event))
            said = "".join(c["text"] for one in told for c in one["choices"])
            if not copy_model.answer(asked.nonce, asked.tokens).startswith(said):
                tally.wrong.append(f"crossed: {said!r} for {asked.nonce!r}")
                break
            if asked.leaves_after is not None and len(told) > asked.leaves_after:
                connection.close(reset=asked.reset)
                tally.outcomes["left"] += 1
                return
    tally.names[told[0]["id"]] += 1
    wrong = asked.wrong(told) or (None if ends == 1 else f"{ends} ends")
    if wrong:
        tally.wrong.append(wrong)
    tally.outcomes["complete"] += 1


async def load(port: int, requests: Sequence[Asked], at_once: int) -> Tally:
    """All requests, so many of them at a time."""
    client, tally, left = Client(port), Tally(), iter(requests)

    async def one() -> None:
        for asked in left:
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await follow(client, asked, tally)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                tally.wrong.append(f"lost: {error!r}")

    await asyncio.gather(*(one() for _ in range(at_once)))
    client.close()
    tally.wrong += [f"doubled: {name}" for name, n in tally.names.items() if n > 1]
    return tally


def settled(server: Served) -> dict[str, float]:
    """The server's figures once nobody asks any more; the last ones where that does not come."""
    end = time.monotonic() + 60
    while True:
        found = server.metrics()
        if not found["inkstone_waiting"] + found["inkstone_running"] or time.monotonic() > end:
            return found
        time.sleep(0.1)


def prove(folder: Path, *, streams: int, at_once: int, seed: int = 0) -> dict[str, Any]:
    """Everything that is to be told of a number of streams."""
    chance = random.Random(seed)
    requests = [Asked.drawn(chance) for _ in range(streams)]
    options = ("--most", str(MOST), "--waiting", str(at_once), "--cache-mb", "64")
    with served(copy_model.save(folder / "copies"), *options) as server:
        before, began = server.metrics(), time.monotonic()
        tally = asyncio.run(load(server.port, requests, at_once))
        took, after = time.monotonic() - began, settled(server)
    open_ = after["inkstone_waiting"] + after["inkstone_running"]
    pages = before["inkstone_cache_pages_free"] - after["inkstone_cache_pages_free"]
    wrong = tally.wrong + server.faults
    wrong += [f"{open_:.0f} are open still"] * bool(open_)
    wrong += [f"{pages:.0f} pages are missing"] * bool(pages)
    return {
        "streams": streams, "at_once": at_once, "seed": seed, **tally.outcomes,
        "wrong": len(wrong), "examples": wrong[:10], "seconds": round(took, 1),
        "answered": after["inkstone_answered"], "cancelled": after["inkstone_cancelled"],
        "answer_tokens": after["inkstone_answer_tokens"], "steps": after["inkstone_steps"],
        "open_at_the_end": open_, "pages_missing_at_the_end": pages,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--at-once", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        facts = prove(Path(name), streams=given.streams, at_once=given.at_once, seed=given.seed)
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    (ROOT / "docs" / "proofs" / "streams.json").write_text(text, encoding="utf-8")
    sys.exit(bool(facts["wrong"]))


if __name__ == "__main__":
    main()
