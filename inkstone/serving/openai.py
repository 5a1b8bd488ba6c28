"""OpenAI's interface: chat, completions and embeddings, as a whole or as events."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse

from inkstone.errors import UsageError
from inkstone.inference.chat import Asked
from inkstone.inference.middle import BLANKS, prompt_between
from inkstone.inference.sampling import TokenScore
from inkstone.inference.stream import Chunk, Generation
from inkstone.serving import protocol
from inkstone.serving.answers import (
    DEFAULT_TOKENS,
    WHITE,
    Events,
    again,
    merged,
    unless_gone,
    whole,
)
from inkstone.serving.errors import ApiError
from inkstone.serving.guard import hold
from inkstone.serving.hosted import Hosted
from inkstone.serving.protocol import ChatCompletions, Completions, Embeddings
from inkstone.serving.threads import beside


class Choices:
    """What is told of the answers to one request, in the shape of one of the two interfaces.

    Args:
        hosted: The model.
        asked: Every answer: what to continue, and how.
        prompts: Tokens that were read.
        kind: "chat.completion" or "text_completion".
        logprobs: Whether they are told.
        blanks: Of each answer the characters that its beginning is told without.
    """

    def __init__(
        self,
        hosted: Hosted,
        asked: Sequence[Asked],
        prompts: int,
        *,
        kind: str,
        logprobs: bool,
        blanks: Sequence[str],
    ) -> None:
        self.hosted, self.asked, self.kind, self.logprobs = hosted, list(asked), kind, logprobs
        self.prompts, self.blanks = prompts, list(blanks)
        self.id = protocol.new_id("chatcmpl" if self.chat else "cmpl")
        self.created = protocol.now()
        self._begun = [False] * len(asked)
        self._lengths = [0] * len(asked)

    @property
    def chat(self) -> bool:
        """Which of the two it is."""
        return self.kind == "chat.completion"

    def head(self, *, event: bool = False) -> dict[str, Any]:
        """What every object begins with."""
        kind = f"{self.kind}.chunk" if event and self.chat else self.kind
        return {
            "id": self.id, "object": kind, "created": self.created, "model": self.hosted.name,
            "system_fingerprint": None,
        }  # fmt: skip

    def whole(self, answers: Sequence[Generation], echoes: Sequence[Echo]) -> dict[str, Any]:
        """The object of complete answers."""
        choices = []
        for number, answer in enumerate(answers):
            echo = echoes[number] if echoes else None
            choice: dict[str, Any] = {"index": number, "finish_reason": answer.finish_reason}
            text = self._trimmed(number, answer.text)
            if self.chat:
                choice["message"] = {"role": "assistant", "content": text, "refusal": None}
            else:
                choice["text"] = (echo.text if echo else "") + text
            choice["logprobs"] = self._logprobs(number, answer.logprobs, echo)
            choices.append(choice)
        used = sum(len(answer.ids) for answer in answers)
        return {**self.head(), "choices": choices, "usage": protocol.usage(self.prompts, used)}

    async def events(
        self, chunks: AsyncIterator[tuple[int, Chunk]], *, usage: bool
    ) -> AsyncGenerator[dict[str, Any] | str, None]:
        """The objects of a stream."""
        used = 0
        more = {"usage": None} if usage else {}
        async for number, chunk in chunks:
            used += len(chunk.ids)
            for choice in self._deltas(number, chunk):
                yield {**self.head(event=True), "choices": [choice], **more}
        if usage:
            spent = protocol.usage(self.prompts, used)
            yield {**self.head(event=True), "choices": [], "usage": spent}
        yield "[DONE]"

    def _deltas(self, number: int, chunk: Chunk) -> list[dict[str, Any]]:
        logprobs = self._logprobs(number, chunk.logprobs, None)
        if not self.chat:
            text = self._trimmed(number, chunk.text)
            return [{"index": number, "text": text, "logprobs": logprobs,
                     "finish_reason": chunk.finish_reason}]  # fmt: skip
        found: list[dict[str, Any]] = []
        if not self._lengths[number]:
            first = {"role": "assistant", "content": "", "refusal": None}
            found.append({"index": number, "delta": first, "logprobs": None,
                          "finish_reason": None})  # fmt: skip
        text = self._trimmed(number, chunk.text)
        self._lengths[number] += len(chunk.ids)
        found.append({"index": number, "delta": {"content": text} if text else {},
                      "logprobs": logprobs, "finish_reason": chunk.finish_reason})  # fmt: skip
        return found

    def _trimmed(self, number: int, text: str) -> str:
        """Without the blanks that the beginning of an answer is told without."""
        text = text if self._begun[number] else text.lstrip(self.blanks[number])
        self._begun[number] = self._begun[number] or bool(text)
        return text

    def _logprobs(
        self, number: int, scores: Sequence[TokenScore], echo: Echo | None
    ) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        if self.chat:
            return protocol.chat_logprobs(scores, self.hosted.token_bytes)

        def text(token: int) -> str:
            return self.hosted.token_bytes(token).decode("utf-8", "replace")

        def name(token: int) -> str:
            """A key, so unlike any other token's: what is no whole character by its bytes."""
            raw = self.hosted.token_bytes(token)
            try:
                return raw.decode()
            except UnicodeDecodeError:
                return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

        told: list[tuple[str, float | None, dict[str, float] | None]] = []
        if echo is not None and echo.first is not None:
            told.append((text(echo.first), None, None))
        for one in (*(echo.scores if echo is not None else ()), *scores):
            told.append((text(one.id), one.logprob, {name(i): p for i, p in one.top}))
        start = self._lengths[number]
        self._lengths[number] += sum(len(token) for token, _, _ in told)
        return protocol.completion_logprobs(told, start)


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt that is told again before its answer.

    Attributes:
        text: As it was sent.
        scores: Of its tokens, where these are asked for.
        first: A token ahead of these, which nothing was there to foretell.
    """

    text: str
    scores: Sequence[TokenScore]
    first: int | None = None


async def chat(request: Request, hosted: Hosted, body: ChatCompletions, timeout_s: float) -> Any:
    """`POST /v1/chat/completions`."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs=true", param="top_logprobs")
    most = body.max_completion_tokens or body.max_tokens or DEFAULT_TOKENS
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    configs = body.sampling(most, logprobs)
    assert hosted.worker is not None
    hold(request.scope, hosted.worker.places(body.n))

    def put_to_it() -> Asked:  # they differ in their seeds alone
        return hosted.asked([message.plain() for message in body.messages], configs[0])

    put = await unless_gone(request, beside(put_to_it))
    asked = [
        replace(put, config=put.config.model_copy(update={"seed": config.seed}))
        for config in configs
    ]
    choices = Choices(
        hosted, asked, len(put.ids), kind="chat.completion", logprobs=body.logprobs,
        blanks=[WHITE] * len(asked),  # a transcript has one before the first word
    )  # fmt: skip
    return await _respond(request, body, choices, [], timeout_s)


async def completions(request: Request, hosted: Hosted, body: Completions, timeout_s: float) -> Any:
    """`POST /v1/completions`."""
    if body.best_of not in (None, body.n):
        raise ApiError(400, "best_of is not supported beyond n", param="best_of")
    if body.echo and body.stream:
        raise ApiError(400, "echo cannot be streamed", param="echo")
    if body.max_tokens == 0 and not body.echo:
        raise ApiError(400, "max_tokens=0 answers nothing without echo", param="max_tokens")
    several = _several(body)
    ends = hosted.model.generator.end_ids
    configs = body.sampling(max(1, body.max_tokens), body.logprobs)
    assert hosted.worker is not None
    hold(request.scope, hosted.worker.places(len(several) * body.n))
    prompts = await unless_gone(request, beside(_prompts, hosted, body, several))
    asked = [
        Asked(list(ids), config, ends, adapter=hosted.adapter)
        for ids, _ in prompts
        for config in configs
    ]
    echoes: list[Echo] = []
    if body.echo:
        scores: list[list[TokenScore]] = [[] for _ in prompts]
        if body.logprobs is not None:
            work = hosted.desk.do("score", [(ids, body.logprobs) for ids, _ in prompts])
            scores = await unless_gone(request, work)
        for (ids, text), own in zip(prompts, scores, strict=True):
            if text is None:  # ids came, so the first one is the client's
                tokenizer = hosted.model.generator.tokenizer
                assert tokenizer is not None
                first = ids[0] if body.logprobs is not None else None
                said = await unless_gone(request, beside(tokenizer.decode, ids))
                echoes += [Echo(said, own, first)] * body.n
            else:
                echoes += [Echo(text, own)] * body.n
    choices = Choices(
        hosted, asked, sum(len(ids) for ids, _ in prompts), kind="text_completion",
        logprobs=body.logprobs is not None,
        blanks=[_said_already(body, text) for _, text in prompts for _ in configs],
    )  # fmt: skip
    if body.max_tokens == 0:
        empty = [Generation("", [], "length") for _ in asked]
        return JSONResponse(choices.whole(empty, echoes))
    return await _respond(request, body, choices, echoes, timeout_s)


async def embeddings(request: Request, hosted: Hosted, body: Embeddings) -> Any:
    """`POST /v1/embeddings`."""
    texts = [body.input] if isinstance(body.input, str) else body.input
    if not 0 < len(texts) <= protocol.MOST_INPUTS:
        raise ApiError(400, f"give 1 to {protocol.MOST_INPUTS} texts", param="input")
    vectors = await unless_gone(request, hosted.desk.do("embed", texts))
    if body.dimensions is not None and body.dimensions != len(vectors[0]):
        raise ApiError(400, f"vectors have {len(vectors[0])} dimensions", param="dimensions")

    def shown(vector: Any) -> Any:
        if body.encoding_format == "float":
            return [float(x) for x in vector]
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()

    def told() -> JSONResponse:
        tokenizer = hosted.model.tokenizer
        assert tokenizer is not None
        used = sum(map(len, tokenizer.encode_batch(texts)))
        data = [
            {"object": "embedding", "index": i, "embedding": shown(vector)}
            for i, vector in enumerate(vectors)
        ]
        spent = {"prompt_tokens": used, "total_tokens": used}
        return JSONResponse({"object": "list", "data": data, "model": hosted.name, "usage": spent})

    return await unless_gone(request, beside(told))


async def _respond(
    request: Request, body: Any, choices: Choices, echoes: Sequence[Echo], timeout_s: float
) -> Any:
    worker = choices.hosted.worker
    assert worker is not None
    if not body.stream:
        answers = await unless_gone(request, whole(worker, choices.asked, timeout_s))
        return JSONResponse(choices.whole(answers, echoes))
    usage = body.stream_options is not None and body.stream_options.include_usage
    chunks = merged(worker, choices.asked, timeout_s)
    # an error that comes before the first chunk still has a status
    first = await unless_gone(request, anext(chunks))

    return Events(choices.events(again(first, chunks), usage=usage))


def _several(body: Completions) -> list[Any]:
    """What is to be continued, each a text or ids."""
    given = body.prompt
    several: list[Any]
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        several = [given]
    else:
        several = list(given)
    if not 0 < len(several) * body.n <= protocol.MOST_INPUTS:
        raise ApiError(400, f"give 1 to {protocol.MOST_INPUTS} prompts", param="prompt")
    if body.suffix is not None and not all(isinstance(one, str) for one in several):
        raise ApiError(400, "suffix goes with a prompt of text", param="suffix")
    return several


def _prompts(
    hosted: Hosted, body: Completions, several: Sequence[Any]
) -> list[tuple[list[int], str | None]]:
    """The ids of what is to be continued, and the text where text was sent."""
    generator = hosted.model.generator
    for one in several:
        if isinstance(one, str):
            hosted.check_length(len(one), "prompt")
    if body.suffix is not None:
        hosted.check_length(len(body.suffix), "suffix")
        room = min(max(1, body.max_tokens), generator.max_seq_len // 2)
        first = hosted.model.suffix_first
        try:
            return [
                (prompt_between(generator, text, body.suffix, room, suffix_first=first), text)
                for text in several
            ]
        except UsageError as error:
            raise ApiError(400, error.message, param="suffix") from error
    return [
        (generator.encode(one), one) if isinstance(one, str) else (list(one), None)
        for one in several
    ]


def _said_already(body: Completions, text: str | None) -> str:
    """Blanks at the end of a prefix are not written again (`inference.middle`)."""
    return BLANKS if body.suffix is not None and (text or "").endswith(tuple(BLANKS)) else ""
