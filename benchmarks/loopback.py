"""`inkstone serve` in a process of its own, and a client that costs little beside it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

PATIENCE_S = 120
ENDED = 143  # what a command that SIGTERM has ended exits with


@dataclass
class Served:
    """A running server.

    Attributes:
        process: Its process.
        port: On 127.0.0.1.
        faults: Lines of its log that tell of an exception.
    """

    process: subprocess.Popen[str]
    port: int = 0
    faults: list[str] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """Of its first model and of the whole, by name."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as got:
            lines = got.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.partition("{")[0]: float(value) for name, value in pairs}

    def memory(self) -> int:
        """Bytes of it that are in memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def served(folder: Path, *options: str, threads: int | None = None) -> Iterator[Served]:
    """A server of one model while it runs; it has to end well, too."""
    command = [sys.executable, "-m", "inkstone", "serve", str(folder), "--port", "0", *options]
    chosen = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(
        command, env=os.environ | chosen, cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    found, up = Served(process), threading.Event()

    def listen() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            if "listening at" in line:
                found.port = int(line.split("127.0.0.1:")[1].split(";")[0])
                up.set()
            if "Error" in line or "Exception" in line or "Traceback" in line:
                found.faults.append(line.strip())
        up.set()

    reader = threading.Thread(target=listen, daemon=True)
    reader.start()
    try:
        if not up.wait(PATIENCE_S) or not found.port:
            sys.exit(f"the server did not start: {found.faults}")
        yield found
        process.terminate()
        if process.wait(PATIENCE_S) != ENDED:
            found.faults.append(f"it ended with {process.returncode}")
    finally:
        process.kill()
        process.wait()
        reader.join(PATIENCE_S)


def post(port: int, path: str, body: dict[str, Any]) -> bytes:
    """A whole request, to be sent again and again."""
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return head.encode() + f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw


class Client:
    """Connections to one server, that are used again where it keeps them open."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: deque[Connection] = deque()

    async def connect(self) -> Connection:
        """One that is idle, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.reader.at_eof():
                return connection
            connection.close()
        return Connection(*await asyncio.open_connection("127.0.0.1", self.port), self._idle)

    def close(self) -> None:
        """Close what is idle."""
        while self._idle:
            self._idle.pop().close()


@dataclass
class Connection:
    """One connection; at most one request at a time."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    idle: deque[Connection]

    async def ask(self, request: bytes) -> tuple[int, dict[str, str]]:
        """Send a request; the status and headers of the response."""
        self.writer.write(request)
        raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split(" ")[1]), {k.lower(): v.strip() for k, _, v in pairs}

    async def body(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """Pieces of the response's body; behind the last one the connection can be used again."""
        if "content-length" in headers:
            yield await self.reader.readexactly(int(headers["content-length"]))
        else:
            while size := int(await self.reader.readline(), 16):
                yield (await self.reader.readexactly(size + 2))[:-2]
            await self.reader.readline()
        if headers.get("connection", "").lower() == "close":
            self.close()
        else:
            self.idle.append(self)

    async def events(self, headers: dict[str, str]) -> AsyncIterator[str]:
        """What stands behind `data:` in the events of a stream."""
        left = b""
        async for piece in self.body(headers):
            *whole, left = (left + piece).split(b"\n\n")
            for event in whole:
                yield event.decode().removeprefix("data: ")
        if left:
            raise ConnectionError("the stream ends in the middle of an event")

    def close(self, *, reset: bool = False) -> None:
        """Hang up; with `reset`, as a machine that fails does."""
        if reset:
            self.writer.transport.abort()
        self.writer.close()
