"""Work that is done at once: texts in, results out, those that wait together taken together."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from inkstone.errors import InkstoneError
from inkstone.serving.threads import InThread, Stopped

TOGETHER = 256  # inputs


@dataclass(eq=False)
class _Job:
    kind: str
    inputs: Sequence[Any]
    done: asyncio.Future[list[Any]]


class Desk(InThread[_Job]):
    """A thread that does one thing after another, for callers in an event loop.

    Args:
        kinds: What can be done: a function from inputs to as many results, by name.
        waiting: Jobs that may wait.
    """

    def __init__(
        self, kinds: dict[str, Callable[[list[Any]], list[Any]]], *, waiting: int = 128
    ) -> None:
        super().__init__("desk")
        self.kinds, self.waiting = kinds, waiting
        self._held: _Job | None = None

    async def do(self, kind: str, inputs: Sequence[Any]) -> list[Any]:
        """The results of some inputs.

        Raises:
            Busy: Too many jobs wait already.
            Stopped: The server is shutting down.
            InkstoneError: Of the work itself.
        """
        self._check(self.waiting, 1)
        job = _Job(kind, inputs, asyncio.get_running_loop().create_future())
        self._open += 1
        self._wishes.put(job)
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
            self._answer(job, Stopped())

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
                    job = self._wishes.get(block=block)
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

        self._in_loop(deliver)
