"""Who leaves is forgotten within a step, who is too many is told so at once, nobody's text crosses
into another's, and an end lets answers end."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from typing import Any

import pytest

from inkstone.errors import ModelError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.engine import Engine
from inkstone.inference.stream import Chunk
from inkstone.serving.server import Server
from inkstone.serving.threads import Busy, Stopped
from inkstone.serving.worker import Worker
from tests.serving.conftest import CONTEXT, Start, small_model
from tests.serving.test_guard import ask


def worker_of(server: Server) -> Worker:
    app: Any = server.config.loaded_app
    (one,) = app.app.state.service.hosted.values()
    assert one.worker is not None
    return one.worker


def until(condition: Any, wait_s: float = 20.0) -> bool:
    end = time.monotonic() + wait_s
    while not condition() and time.monotonic() < end:
        threading.Event().wait(0.005)
    return bool(condition())


def begun(server: Server, **body: Any) -> socket.socket:
    """A stream whose first bytes have come."""
    raw = json.dumps({"prompt": "It was", "stream": True, **body}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
    connection.sendall(head.encode() + raw)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    return connection


def test_who_leaves_is_forgotten(start: Start) -> None:
    server = start(("small", small_model()))
    worker = worker_of(server)
    pages = worker.engine.scheduler.pages
    for _ in range(20):
        connection = begun(server, max_tokens=CONTEXT, n=2)
        connection.close()
    assert until(lambda: not len(worker) and not len(worker.engine))
    assert until(lambda: pages.available == pages.n_pages)
    assert ask(server)[0] == 200


class Slow(Engine):
    """An engine whose steps wait until the test lets them go on."""

    gate = threading.Event()

    def step(self) -> list[Chunk]:
        assert self.gate.wait(30)
        return super().step()


def test_too_many_are_told_at_once(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    from inkstone.serving import hosted

    monkeypatch.setattr(hosted, "Engine", Slow)
    Slow.gate.clear()
    server = start(("small", small_model()), most=1, waiting=2)
    worker = worker_of(server)
    raw = json.dumps({"prompt": "It was", "max_tokens": 3}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(raw)}\r\n\r\n"
    waiting = []
    for n in range(3):
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=20)
        connection.sendall(head.encode() + raw)
        waiting.append(connection)
        assert until(lambda n=n: len(worker) == n + 1)
    for _ in range(5):
        status, headers, content = ask(server)
        assert status == 429 and int(headers["retry-after"]) >= 1, content
    Slow.gate.set()
    for connection in waiting:
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        connection.close()
    assert ask(server)[0] == 200


def test_an_end_lets_answers_end(start: Start) -> None:
    server = start(("small", small_model()))
    streams = [begun(server, max_tokens=60, seed=i) for i in range(10)]
    server.should_exit = True
    for connection in streams:
        parts = []
        while part := connection.recv(1 << 16):
            parts.append(part)
        assert b"[DONE]" in b"".join(parts)
    assert until(lambda: not worker_of(server)._thread.is_alive())
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", server.port), timeout=2)


def test_streams_neither_cross_nor_double() -> None:
    """A model that says its prompt again: a nonce that comes back wrong came from somebody else."""
    answered, cancelled = asyncio.run(_copies(300))
    assert answered > 100 and cancelled > 50


async def _copies(count: int) -> tuple[int, int]:
    model = small_model()
    engine = Engine(model.model, None, most=8, tokens_per_step=32)
    _copying(engine)
    worker = Worker(engine, waiting=count)
    worker.start()
    chance = random.Random(0)
    found = [0, 0]

    async def one(seed: int) -> None:
        own = random.Random(seed)
        nonce = [own.randrange(4, 200) for _ in range(own.randint(3, 30))]
        leave_at = own.randint(0, len(nonce)) if own.random() < 0.5 else len(nonce) + 1
        said: list[int] = []
        stream = worker.stream([3, *nonce], SamplingConfig(temperature=0.0, max_tokens=len(nonce)))
        async for chunk in stream:
            said += chunk.ids
            assert said == nonce[: len(said)], "somebody else's text"
            if len(said) >= leave_at:
                await stream.aclose()  # type: ignore[attr-defined]
                found[1] += 1
                return
        assert said == nonce
        found[0] += 1

    tasks = []
    for seed in range(count):
        tasks.append(asyncio.create_task(one(seed)))
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    while len(engine):
        await asyncio.sleep(0.001)
    assert engine.scheduler.pages.available == engine.scheduler.pages.n_pages
    assert worker.counts.answered + worker.counts.cancelled <= count
    await asyncio.to_thread(worker.stop)
    return found[0], found[1]


def _copying(engine: Engine) -> None:
    """Scores that make a request say its prompt, told by the tokens that the pages hold."""
    import torch

    cache: Any = engine.cache
    pool = torch.zeros(engine._n_pages, cache.page_size, dtype=torch.long)

    def hidden(ids: torch.Tensor, cache: Any) -> torch.Tensor:
        layout = cache.layout
        rows, positions = layout.rows, layout.positions
        pages = layout.tables[rows, positions // cache.page_size]
        pool[pages, positions % cache.page_size] = ids[0]
        out = []
        for row, position in zip(rows.tolist(), positions.tolist(), strict=True):
            places = torch.arange(position + 1)
            text = pool[layout.tables[row, places // cache.page_size], places % cache.page_size]
            out.append(next_of.get(tuple(text[1:].tolist()), 0))
        return torch.tensor(out)[None, :, None]

    next_of: dict[tuple[int, ...], int] = {}
    submit = engine.submit

    def remember(prompt: Any, config: SamplingConfig, **options: Any) -> int:
        nonce = list(prompt[1:])
        for n in range(len(nonce)):
            next_of[tuple(nonce + nonce[:n])] = nonce[n]
        return submit(prompt, config, **options)

    engine.submit = remember  # type: ignore[method-assign]
    engine.model.hidden = hidden
    engine.model.logits = lambda h: (
        torch.nn.functional.one_hot(h[:, 0], engine.vocab_size).float() * 9
    )


def test_a_model_that_fails_tells_everybody_and_goes_on() -> None:
    async def run() -> None:
        model = small_model()
        engine = Engine(model.model, None)
        worker = Worker(engine)
        worker.start()
        step, failures = engine.step, iter([ModelError("the scores are not finite")])

        def failing() -> list[Chunk]:
            for error in failures:
                raise error
            return step()

        engine.step = failing  # type: ignore[method-assign]
        config = SamplingConfig(max_tokens=3, seed=0)
        with pytest.raises(Stopped, match="not finite"):
            async for _ in worker.stream([1, 2], config):
                pass
        ids = [i async for chunk in worker.stream([1, 2], config) for i in chunk.ids]
        assert len(ids) == 3
        await asyncio.to_thread(worker.stop)
        with pytest.raises(Stopped):
            async for _ in worker.stream([1, 2], config):
                pass

    asyncio.run(run())


def test_the_queue_has_an_end() -> None:
    async def run() -> None:
        engine = Engine(small_model().model, None, most=1)
        worker = Worker(engine, waiting=1)  # not started: nothing is ever answered
        streams = [worker.stream([1], SamplingConfig()) for _ in range(3)]
        tasks = [asyncio.create_task(anext(s)) for s in streams[:2]]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        with pytest.raises(Busy) as caught:
            await anext(streams[2])  # type: ignore[arg-type]
        assert caught.value.retry_after_s >= 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert not len(worker)

    asyncio.run(run())
