"""Answers that grow: several streams of chunks as one, and what is sent of them as events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inkstone.inference.chat import Asked
from inkstone.inference.stream import Chunk, Generation
from inkstone.serving.errors import ApiError
from inkstone.serving.threads import Stopped
from inkstone.serving.worker import Worker

T = TypeVar("T")
DEFAULT_TOKENS = 1 << 20  # of an answer: to the end of the context
WHITE = " \t\r\n"


async def merged(
    worker: Worker, asked: Sequence[Asked], timeout_s: float
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """Chunks of several answers as they come, each with the number of its request.

    They have their places already (`Worker.places`). Leaving early ends all of them.

    Raises:
        InkstoneError: As of `Worker.placed`, for any of them.
        ApiError: They were not complete in time.
    """
    told: asyncio.Queue[tuple[int, Chunk | BaseException]] = asyncio.Queue()

    async def follow(number: int, one: Asked) -> None:
        try:
            async with contextlib.aclosing(
                worker.placed(one.ids, one.config, one.end_ids, one.adapter)
            ) as chunks:
                async for chunk in chunks:
                    told.put_nowait((number, chunk))
        except Exception as error:
            told.put_nowait((number, error))

    tasks = [asyncio.create_task(follow(number, one)) for number, one in enumerate(asked)]
    going = len(tasks)
    end = asyncio.get_running_loop().time() + timeout_s
    try:
        while going:
            try:
                async with asyncio.timeout_at(end):
                    number, found = await told.get()
            except TimeoutError:
                raise ApiError(504, f"the answer was not complete after {timeout_s:g} s") from None
            if isinstance(found, BaseException):
                raise found
            going -= found.finish_reason is not None
            yield number, found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def whole(worker: Worker, asked: Sequence[Asked], timeout_s: float) -> list[Generation]:
    """The answers, complete; errors as of `merged`."""
    answers = [Generation("", [], "stop") for _ in asked]
    async with contextlib.aclosing(merged(worker, asked, timeout_s)) as chunks:
        async for number, chunk in chunks:
            add(answers[number], chunk)
    return answers


def add(answer: Generation, chunk: Chunk) -> None:
    """Append a chunk to an answer."""
    answer.text += chunk.text
    answer.ids += chunk.ids
    answer.logprobs += chunk.logprobs
    answer.finish_reason = chunk.finish_reason or answer.finish_reason


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is broken off where the client goes away.

    Raises:
        ClientGone: It did.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.create_task(_gone(request.receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has gone")
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def again(
    first: tuple[int, Chunk], chunks: AsyncGenerator[tuple[int, Chunk], None]
) -> AsyncGenerator[tuple[int, Chunk], None]:
    """A stream whose first chunk was taken already; it is closed with this one."""
    async with contextlib.aclosing(chunks):
        yield first
        async for found in chunks:
            yield found


class Events(Response):
    """A response of server-sent events; it ends where the client goes away.

    Args:
        events: JSON objects, and a last string that is sent as it is.
    """

    def __init__(self, events: AsyncGenerator[dict[str, Any] | str, None]) -> None:
        super().__init__(media_type="text/event-stream")
        self.events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        raw = [kind, (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": raw})
        sending = asyncio.create_task(self._send(send))
        watch = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({sending, watch}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for one in (sending, watch):
                one.cancel()
            await asyncio.gather(sending, watch, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async def line(event: dict[str, Any] | str) -> None:
            text = event if isinstance(event, str) else json.dumps(event, ensure_ascii=False)
            kind = event.get("type") if isinstance(event, dict) else None
            named = f"event: {kind}\n" if kind else ""
            data = f"{named}data: {text}\n\n".encode("utf-8", "replace")
            await send({"type": "http.response.body", "body": data, "more_body": True})

        try:
            async with contextlib.aclosing(self.events) as events:
                async for event in events:
                    await line(event)
        except (ApiError, Stopped) as error:  # too late for a status
            known = error if isinstance(error, ApiError) else ApiError(503, error.message)
            await line(known.body())
        await send({"type": "http.response.body", "body": b"", "more_body": False})
