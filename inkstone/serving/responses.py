"""OpenAI's newer interface, `/v1/responses`: text in, text out, as a whole or as events."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse

from inkstone.inference.config import SamplingConfig
from inkstone.inference.stream import Chunk, Generation
from inkstone.serving import protocol
from inkstone.serving.answers import (
    DEFAULT_TOKENS,
    WHITE,
    Events,
    add,
    again,
    merged,
    unless_gone,
    whole,
)
from inkstone.serving.errors import ApiError
from inkstone.serving.guard import hold
from inkstone.serving.hosted import Hosted
from inkstone.serving.protocol import Responses
from inkstone.serving.threads import beside


async def responses(request: Request, hosted: Hosted, body: Responses, timeout_s: float) -> Any:
    """`POST /v1/responses`."""
    config = SamplingConfig(
        max_tokens=body.max_output_tokens or DEFAULT_TOKENS, temperature=float(body.temperature),
        top_p=float(body.top_p),
    )  # fmt: skip
    if not body.messages:
        raise ApiError(400, "there is nothing to answer", param="input")
    worker = hosted.worker
    assert worker is not None
    hold(request.scope, worker.places(1))
    asked = await unless_gone(request, beside(hosted.asked, body.messages, config))
    told = Told(hosted, body, len(asked.ids))
    if not body.stream:
        (answer,) = await unless_gone(request, whole(worker, [asked], timeout_s))
        return JSONResponse(told.complete(answer))
    chunks = merged(worker, [asked], timeout_s)
    first = await unless_gone(request, anext(chunks))
    return Events(told.events(again(first, chunks)))


class Told:
    """What is told of one answer of `/v1/responses`.

    Args:
        hosted: The model.
        body: The request.
        prompt: Tokens that were read.
    """

    def __init__(self, hosted: Hosted, body: Responses, prompt: int) -> None:
        self.hosted, self.body, self.prompt = hosted, body, prompt
        self.id, self.message = protocol.new_id("resp"), protocol.new_id("msg")
        self.created = protocol.now()

    def complete(self, answer: Generation) -> dict[str, Any]:
        """The object of a complete answer."""
        cut = answer.finish_reason == "length"
        used = protocol.usage(self.prompt, len(answer.ids))
        return self._object("incomplete" if cut else "completed") | {
            "output": [self._item("incomplete" if cut else "completed", answer.text.lstrip(WHITE))],
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": used["prompt_tokens"], "output_tokens": used["completion_tokens"],
                "total_tokens": used["total_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        }  # fmt: skip

    async def events(self, chunks: AsyncIterator[tuple[int, Chunk]]) -> AsyncGenerator[Any, None]:
        """The objects of a stream, each of a type of its own."""
        number = -1

        def event(kind: str, **more: Any) -> dict[str, Any]:
            nonlocal number
            number += 1
            return {"type": f"response.{kind}", "sequence_number": number, **more}

        place = {"item_id": self.message, "output_index": 0, "content_index": 0}
        yield event("created", response=self._object("in_progress"))
        yield event("in_progress", response=self._object("in_progress"))
        yield event("output_item.added", output_index=0, item=self._item("in_progress", None))
        yield event("content_part.added", **place, part=_part(""))
        answer = Generation("", [], "length")
        async for _, chunk in chunks:
            text = chunk.text if answer.text.lstrip(WHITE) else chunk.text.lstrip(WHITE)
            add(answer, chunk)
            if text:
                yield event("output_text.delta", **place, delta=text, logprobs=[])
        text = answer.text.lstrip(WHITE)
        yield event("output_text.done", **place, text=text, logprobs=[])
        yield event("content_part.done", **place, part=_part(text))
        done = self.complete(answer)
        yield event("output_item.done", output_index=0, item=done["output"][0])
        yield event(done["status"], response=done)

    def _object(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id, "object": "response", "created_at": self.created, "status": status,
            "model": self.hosted.name, "output": [], "error": None, "incomplete_details": None,
            "instructions": self.body.instructions, "metadata": self.body.metadata or {},
            "parallel_tool_calls": False, "tool_choice": "none", "tools": [],
            "temperature": self.body.temperature, "top_p": self.body.top_p, "usage": None,
            "max_output_tokens": self.body.max_output_tokens, "store": False,
        }  # fmt: skip

    def _item(self, status: str, text: str | None) -> dict[str, Any]:
        return {
            "id": self.message, "type": "message", "role": "assistant", "status": status,
            "content": [] if text is None else [_part(text)],
        }  # fmt: skip


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
