"""What many and slow clients do: the crowd is turned away by its heads alone, long work holds
nobody else up, who does not read is dropped; and small versions of the two proofs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import copy_model, loopback, prove_overload, prove_streams
from inkstone.inference.stream import Chunk
from inkstone.serving import connection as connections
from inkstone.serving import hosted, openai
from inkstone.serving.app import Service
from inkstone.serving.server import Server
from tests.serving.conftest import Start, small_model
from tests.serving.test_guard import ask
from tests.serving.test_streams import Slow, begun, until, worker_of

LIVE = {"path": "/health/live", "method": "GET"}


def service_of(server: Server) -> Service:
    app: Any = server.config.loaded_app
    service: Service = app.app.state.service
    return service


def head(server: Server, length: int, *more: str, path: str = "/v1/completions") -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{server.port}",
             "Content-Type: application/json", f"Content-Length: {length}", *more]  # fmt: skip
    return "\r\n".join([*lines, "", ""]).encode()


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=20)


def response(client: socket.socket) -> tuple[int, bytes]:
    """Status and head of one response; its body is read, too."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        part = client.recv(1 << 16)
        assert part, "the connection was closed"
        raw += part
    top, _, body = raw.partition(b"\r\n\r\n")
    length = int(top.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += client.recv(1 << 16)
    assert len(body) == length
    return int(top[9:12]), top.lower()


@pytest.fixture
def full(start: Start, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose only place is taken, until `Slow.gate` lets the answer go on."""
    monkeypatch.setattr(hosted, "Engine", Slow)
    Slow.gate.clear()
    server = start(("small", small_model()), most=1, waiting=0)
    raw = json.dumps({"prompt": "It was", "max_tokens": 2}).encode()
    with connect(server) as first:
        first.sendall(head(server, len(raw)) + raw)
        assert until(lambda: len(worker_of(server)) == 1)
        yield server
        Slow.gate.set()


def test_a_crowd_is_turned_away_by_its_heads(full: Server) -> None:
    """No byte of a body is waited for; a short one that comes later is read, and all goes on."""
    body = json.dumps({"prompt": "It was", "max_tokens": 2}).encode()
    with connect(full) as client:
        for _ in range(3):
            client.sendall(head(full, len(body)))
            status, top = response(client)
            assert status == 429 and b"retry-after: 1" in top and b"connection: close" not in top
            client.sendall(body)
        assert service_of(full).gate.refused == 3
        Slow.gate.set()
        assert until(lambda: not len(worker_of(full)))
        client.sendall(head(full, len(body)) + body)
        assert response(client)[0] == 200
    assert b"inkstone_refused 3.0" in ask(full, None, path="/metrics", method="GET")[2]


@pytest.mark.parametrize("more", [(), ("Expect: 100-continue",)])
def test_who_sends_much_to_a_full_server_still_reads_why(full: Server, more: Any) -> None:
    """The body is not read, but dropped: a reset would take the answer with it."""
    length = 2 << 20
    with connect(full) as client:
        client.sendall(head(full, length, *more))
        client.sendall(b" " * length)
        status, top = response(client)
        assert status == 429 and b"connection: close" in top
        assert client.recv(1) == b""


def test_a_full_server_still_tells_how_it_is(full: Server) -> None:
    assert ask(full, None, **LIVE)[0] == 200
    assert ask(full, None, path="/v1/models", method="GET")[0] == 200
    assert ask(full, {"text": "Hello"}, path="/tokenize")[0] == 200


def test_a_key_has_its_share_of_places(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """And where no key is set, all places are everybody's."""
    monkeypatch.setattr(hosted, "Engine", Slow)
    Slow.gate.clear()
    mine, other = "a-key-of-the-test", "another-key-of-it"
    raw = json.dumps({"prompt": "It was", "max_tokens": 2}).encode()
    for keys in ((mine, other), ()):
        server = start(("small", small_model()), keys=keys, per_key=2)
        clients = [connect(server) for _ in range(2)]
        for client in clients:
            client.sendall(head(server, len(raw), f"Authorization: Bearer {mine}") + raw)
        assert until(lambda server=server: len(worker_of(server)) == 2)
        live = ask(server, None, path="/v1/models", method="GET")
        assert live[0] == (429 if keys else 200), live
        bearer = f"Bearer {other}"
        assert ask(server, None, path="/v1/models", method="GET", Authorization=bearer)[0] == 200
        for client in clients:
            client.close()
    Slow.gate.set()


def test_who_leaves_while_waiting_gives_the_place_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosted, "Engine", Slow)
    Slow.gate.clear()
    server = start(("small", small_model()), most=1, waiting=3)
    raw = json.dumps({"prompt": "It was", "max_tokens": 2}).encode()
    for round_ in range(20):  # more than there are places
        clients = [connect(server) for _ in range(4)]
        for client in clients:
            client.sendall(head(server, len(raw)) + raw)
        assert until(lambda: len(worker_of(server)) == 4), round_
        for client in clients:
            client.close()
        assert until(lambda: not len(worker_of(server))), round_
    Slow.gate.set()
    assert ask(server)[0] == 200


def test_a_long_prompt_holds_nobody_up(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, begun_, prompts = threading.Event(), threading.Event(), openai._prompts

    def slow(*arguments: Any) -> Any:
        if "long" in arguments[2]:
            begun_.set()
            assert gate.wait(30)
        return prompts(*arguments)

    monkeypatch.setattr(openai, "_prompts", slow)
    server = start(("small", small_model()))
    found: list[int] = []
    long = {"prompt": "long", "max_tokens": 2}
    waiting = threading.Thread(target=lambda: found.append(ask(server, long)[0]))
    waiting.start()
    assert begun_.wait(20)
    assert len(worker_of(server)) == 1  # it has its place before it is read
    assert ask(server, None, **LIVE)[0] == 200 and ask(server)[0] == 200 and not found
    gate.set()
    waiting.join(20)
    assert found == [200]


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        (b'{"prompt": [' + b"{}," * 5_000_000 + b"{}]}", "parts"),
        (b'{"prompt": [' + b"[]," * 5_000_000 + b"[]]}", "parts"),
        (b'{"prompt": [' + b'"",' * 300_000 + b'""]}', "parts"),
        (json.dumps({f"k{i}": 1 for i in range(200_000)}).encode(), "keys"),
        (json.dumps({"logit_bias": {str(i): "x" for i in range(5_000)}}).encode(), "keys"),
        (json.dumps({"prompt": [{}] * 200_000}).encode(), "prompt"),
        (json.dumps({"prompt": "," * 1_000_000}).encode(), "context"),
        (json.dumps({"prompt": "x" * 15_000_000}).encode(), "context"),
        (json.dumps({"prompt": [1] * 200_000}).encode(), "context"),
        (json.dumps({"prompt": ["x"] * 2_000}).encode(), "room"),
    ],
)
def test_costly_bodies_are_refused_before_they_cost(server: Server, raw: bytes, told: str) -> None:
    status, _, content = ask(server, raw)
    assert status == 400 and told in json.loads(content)["error"]["message"], content[:300]


def test_who_reads_nothing_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STALL_S", 0.2)
    server = start(("small", small_model()))
    raw = json.dumps({"text": "x" * 2_000_000}).encode()
    open_ = server.server_state.connections
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect(("127.0.0.1", server.port))
        client.sendall(head(server, len(raw), path="/tokenize") + raw)
        assert until(lambda: len(open_) == 1) and until(lambda: not open_)
        came = 0
        while part := client.recv(1 << 20):
            came += len(part)
        assert came < 4 * 2_000_000  # an answer has more: "120," for every letter, and its text
    assert not service_of(server).gate.open(growing=False) and ask(server)[0] == 200


def test_connections_have_an_end(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "connections_allowed", lambda: 20)
    server = start(("small", small_model()))
    idle = [connect(server) for _ in range(20)]
    assert until(lambda: len(server.server_state.connections) == 20)
    with connect(server) as late, pytest.raises(OSError):
        late.sendall(b"GET /health/live HTTP/1.1\r\n")
        if late.recv(1) == b"":
            raise ConnectionResetError
    for one in idle:
        one.close()
    assert until(lambda: not server.server_state.connections)
    assert ask(server)[0] == 200


def test_a_model_that_fails_in_the_middle_of_a_stream(start: Start) -> None:
    server = start(("small", small_model()))
    worker, gate = worker_of(server), threading.Event()
    step = worker.engine.step

    def failing() -> list[Chunk]:
        if gate.is_set():
            gate.clear()
            raise RuntimeError("out of memory")
        return step()

    worker.engine.step = failing  # type: ignore[method-assign]
    streams = [begun(server, max_tokens=200, seed=seed) for seed in range(4)]
    gate.set()
    for client in streams:
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
            if b"0\r\n\r\n" in part:
                break
        said = b"".join(parts)
        assert b"out of memory" in said or b"[DONE]" in said
        client.close()
    assert not gate.is_set() and until(lambda: not len(worker))
    pages = worker.engine.scheduler.pages
    assert until(lambda: pages.available == pages.n_pages) and ask(server)[0] == 200


def test_an_end_among_a_hundred_streams(tmp_path: Path) -> None:
    """SIGTERM: every stream that has begun comes to its own end, and the command to its code."""
    folder = copy_model.save(tmp_path / "copies")

    async def run(server: loopback.Served) -> list[str]:
        client = loopback.Client(server.port)
        nonces = [f"{n:0{copy_model.NONCE}}" for n in range(100)]
        going = asyncio.Barrier(101)

        async def one(nonce: str) -> str:
            body = {"prompt": nonce, "max_tokens": 200, "stream": True, "temperature": 0}
            connection = await client.connect()
            request = loopback.post(server.port, "/v1/completions", body)
            status, headers = await connection.ask(request)
            await going.wait()
            events = [e async for e in connection.events(headers)]
            assert status == 200 and events.pop() == "[DONE]"
            said = "".join(json.loads(e)["choices"][0]["text"] for e in events)
            return "" if said == copy_model.answer(nonce, 200) else f"{nonce}: {said}"

        tasks = [asyncio.create_task(one(nonce)) for nonce in nonces]
        await going.wait()
        server.process.terminate()
        return [wrong for wrong in await asyncio.gather(*tasks) if wrong]

    with loopback.served(folder, "--most", "64") as server:
        assert asyncio.run(run(server)) == []
    assert server.faults == []


def test_some_streams_are_neither_lost_nor_doubled_nor_crossed(tmp_path: Path) -> None:
    facts = prove_streams.prove(tmp_path, streams=400, at_once=120)
    assert facts["wrong"] == 0, facts["examples"]
    assert facts["complete"] + facts["left"] + facts["left unread"] == 400
    assert facts["left"] > 50 and facts["left unread"] > 0


def test_some_seconds_of_overload(tmp_path: Path) -> None:
    """Nobody is lost; how fast it was is told by `make prove-overload` on a machine at rest."""
    facts = prove_overload.prove(
        tmp_path, seconds=1.0, warm_s=0.5, most=4, threads=1, n_layers=1, d_model=32, n_heads=2,
        vocab_size=300,
    )  # fmt: skip
    assert facts["holds"]["no fault"], facts
    assert set(facts["statuses"]) == {"200", "429"} and facts["memory_mb"]["each_second"]
