"""A connection of the server: limits on what has not become a request yet, and a gentle end."""

from __future__ import annotations

import asyncio
import functools
import resource
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0  # for the head of a request to arrive
STALL_S = 30.0  # for a client to read anything of what waits for it
LINGER_S = 2.0  # for a client to read an answer that came before it had sent everything
LINGER_BYTES = 1 << 25  # that it may go on to send meanwhile
MOST_CONNECTIONS = 8192
OTHER_FILES = 128


@functools.cache
def connections_allowed() -> int:
    """Connections that may be open at once; the limit of open files is raised for them.

    A server without a free descriptor could not even turn anybody away.
    """
    wanted = MOST_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return MOST_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft, wanted) - OTHER_FILES


class Channel:
    """A transport that sends at once what is written in one turn of the loop, and ends gently.

    Args:
        transport: asyncio's.
        unread: Whether the other side has something to send yet.
    """

    def __init__(self, transport: asyncio.Transport, unread: Callable[[], bool]) -> None:
        self._transport, self._unread = transport, unread
        self._loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._ending: asyncio.TimerHandle | None = None
        self._dropped = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send something, with whatever else is written before the loop goes on."""
        if data:
            if not self._parts:
                self._loop.call_soon(self._flush)
            self._parts.append(data)

    def is_closing(self) -> bool:
        """Whether nothing more can be sent."""
        return self._ending is not None or self._transport.is_closing()

    def close(self) -> None:
        """Send what was written, and hang up; where a request is still coming, our half first.

        A socket that is closed while something arrives is reset, and the answer may be lost with
        it. What still comes is dropped until the client has hung up, too (RFC 9112, section 9.6).
        """
        self._flush()
        if self.is_closing():
            return
        if not self._unread() or not self._transport.can_write_eof():
            return self._transport.close()
        self._ending = self._loop.call_later(LINGER_S, self._transport.abort)
        self._transport.write_eof()
        self._transport.resume_reading()

    def drop(self, data: bytes) -> None:
        """Something came that nobody reads any more."""
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES:
            self._transport.abort()

    def ended(self) -> None:
        """The connection is lost."""
        self._parts.clear()
        if self._ending is not None:
            self._ending.cancel()

    def _flush(self) -> None:
        if self._parts and not self.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()


class Protocol(H11Protocol):
    """A connection that ends where its client lets it wait.

    For the head of its first request, or by reading nothing of what is sent.
    """

    _late: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(Channel(transport, self._unread))  # type: ignore[arg-type]
        if len(self.connections) > connections_allowed():
            return transport.abort()
        self._late = self.loop.call_later(HEAD_TIMEOUT_S, transport.abort)
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        self.resume_writing()
        self.transport.ended()  # type: ignore[attr-defined]
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return self.transport.drop(data)  # type: ignore[attr-defined, no-any-return]
        return super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None:
            self._arrived()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _unread(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
