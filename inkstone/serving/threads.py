"""Work in a thread of its own, for callers in an event loop."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

from inkstone.errors import InkstoneError

T = TypeVar("T")
W = TypeVar("W")

HELPERS = 2  # threads that read what requests bring; more of them would keep the model waiting


class Busy(InkstoneError):
    """Too many requests wait already.

    Attributes:
        retry_after_s: When to ask again.
    """

    def __init__(self, waiting: int, retry_after_s: int) -> None:
        super().__init__(f"{waiting} requests wait already", fix=f"ask again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Stopped(InkstoneError):
    """The server was stopped, or the work failed, before the answer was complete."""

    def __init__(self, reason: str = "the server is shutting down") -> None:
        super().__init__(reason)


@functools.cache
def _helpers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(HELPERS, thread_name_prefix="helper")


async def beside(work: Callable[..., T], *arguments: Any) -> T:
    """Do what takes a while (reading a long body, a template, a prompt) beside the event loop.

    A few threads do this for the whole process, one thing after the other. Nothing is handed to
    them but the requests that were let in, so that their queue has an end; what nobody waits for
    any more is not begun.
    """
    return await asyncio.get_running_loop().run_in_executor(_helpers(), work, *arguments)


class InThread(Generic[W]):
    """What a thread and the event loop that it works for know of each other.

    What the loop wants waits in `_wishes`, and None wakes the thread up; what the thread has to
    tell goes through `_in_loop`.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._wishes: queue.SimpleQueue[W | None] = queue.SimpleQueue()
        self._open = 0
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __len__(self) -> int:
        """Requests that wait or are being answered."""
        return self._open

    def start(self) -> None:
        """Begin; called inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after what it does now; who still waits is told `Stopped`."""
        self._stopping = True
        self._wishes.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        raise NotImplementedError

    def _check(self, most: int, retry_after_s: int, more: int = 1) -> None:
        """Whether some more may wait.

        Raises:
            Busy: With them there would be more than `most`.
            Stopped: The server is shutting down.
        """
        if self._open + more > most:
            raise Busy(self._open, retry_after_s)
        if self._stopping:
            raise Stopped

    def _in_loop(self, work: Callable[[], None]) -> None:
        """Do something in the event loop, if there still is one."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)
