"""Work that is done at once: texts in, results out, those that wait together taken together."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inkstone.errors import InkstoneError
from inkstone.serving.worker import Busy, Stopped

TOGETHER = 256  # inputs


@dataclass(eq=False)
class _Job:
    kind: str
    inputs: Sequence[Any]
    done: asyncio.Future[list[Any]]


class Desk:
    """A thread that does one thing after another, for callers in an event loop.

    Args:
        kinds: What can be done: a function from inputs to as many results, by name.
        waiting: Jobs that may wait.
    """

    def __init__(
        self, kinds: dict[str, Callable[[list[Any]], list[Any]]], *, waiting: int = 128
    ) -> None:
        self.kinds, self.waiting = kinds, waiting
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._held: _Job | None = None
        self._open = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)
        self._stopping = False

    def __len__(self) -> int:
        """Jobs that wait or are being done."""
        return self._open

    def start(self) -> None:
        """Begin; called inside the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end; who still waits is told `Stopped`."""
        self._stopping = True
        self._jobs.put(None)
        if self._thread.is_alive():
            self._thread.join()

    async def do(self, kind: str, inputs: Sequence[Any]) -> list[Any]:
        """The results of some inputs.

        Raises:
            Busy: Too many jobs wait already.
            Stopped: The server is shutting down.
            InkstoneError: Of the work itself.
        """
        if self._open >= self.waiting:
            raise Busy(self._open, 1)
        if self._stopping:
            raise Stopped("the server is shutting down")
        job = _Job(kind, inputs, asyncio.get_running_loop().create_future())
        self._open += 1
        self._jobs.put(job)
        try:
            return await job.done
        finally:
            self._open -= 1

    def _run(self) -> None:
        while not self._stopping:
            jobs = self._next()
            if not jobs:
                continue
            try:
                results = self.kinds[jobs[0].kind]([x for job in jobs for x in job.inputs])
            except Exception as error:
                self._apart(jobs, error)
                continue
            self._tell(jobs, results)
        while (job := self._take(block=False)) is not None:
            self._answer(job, Stopped("the server is shutting down"))

    def _next(self) -> list[_Job]:
        """The job that came first, and others of its kind that wait right behind it."""
        first = self._take(block=True)
        if first is None:
            return []
        jobs, room = [first], TOGETHER - len(first.inputs)
        while room > 0 and (job := self._take(block=False)) is not None:
            if job.kind != first.kind or len(job.inputs) > room:
                self._held = job
                break
            jobs.append(job)
            room -= len(job.inputs)
        return jobs

    def _take(self, *, block: bool) -> _Job | None:
        while True:
            job, self._held = self._held, None
            if job is None:
                try:
                    job = self._jobs.get(block=block)
                except queue.Empty:
                    return None
            if job is None or not job.done.cancelled():
                return job

    def _apart(self, jobs: list[_Job], error: Exception) -> None:
        """One bad input spoils nobody else's answer."""
        if len(jobs) == 1:
            return self._answer(jobs[0], error)
        for job in jobs:
            try:
                results = self.kinds[job.kind](list(job.inputs))
            except Exception as own:
                self._answer(job, own)
            else:
                self._answer(job, results)
        return None

    def _tell(self, jobs: list[_Job], results: list[Any]) -> None:
        assert len(results) == sum(len(job.inputs) for job in jobs)
        place = 0
        for job in jobs:
            self._answer(job, results[place : place + len(job.inputs)])
            place += len(job.inputs)

    def _answer(self, job: _Job, found: list[Any] | Exception) -> None:
        def deliver() -> None:
            if job.done.done():
                return  # whoever asked has gone
            if isinstance(found, Exception):
                known = isinstance(found, InkstoneError)
                job.done.set_exception(found if known else Stopped(f"it failed: {found!r}"))
            else:
                job.done.set_result(found)

        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)
