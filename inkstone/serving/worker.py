"""An engine in a thread of its own, for callers in an event loop.

The thread runs steps as long as somebody waits. What it has to tell goes to the loop once a step;
what the loop wants of it (a request, or to forget one) waits in a queue until the next step begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
from collections.abc import AsyncGenerator, Collection, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.constrained import Constraint, constraint_of
from inkstone.inference.engine import Engine
from inkstone.inference.stream import Chunk
from inkstone.serving.threads import InThread, Stopped, beside


@dataclass(slots=True)
class Counts:
    """What a worker has done so far.

    Attributes:
        answered: Requests that came to an end.
        cancelled: Requests that nobody wanted any more.
        prompt_tokens: Tokens of prompts.
        answer_tokens: Tokens of answers.
        steps: Passes of the model.
    """

    answered: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    steps: int = 0

    @classmethod
    def sum(cls, several: Iterable[Counts]) -> Counts:
        """Of all together."""
        return cls(*map(sum, zip(*map(astuple, several), strict=True)))


@dataclass(eq=False)
class _Caller:
    prompt: Sequence[int]
    config: SamplingConfig
    end_ids: Collection[int]
    told: asyncio.Queue[Chunk | BaseException]
    constraint: Constraint | None = None
    adapter: str | None = None
    number: int | None = None
    gone: bool = False


class Worker(InThread["_Caller"]):
    """Runs an engine; to be used from one event loop.

    Args:
        engine: Nobody else uses it.
        waiting: Requests that may wait beside those that are being answered.
    """

    def __init__(self, engine: Engine, *, waiting: int = 128) -> None:
        super().__init__("engine")
        self.engine, self.waiting = engine, waiting
        self.counts_of = {name: Counts() for name in (None, *engine.adapters)}
        self._callers: dict[int, _Caller] = {}

    @property
    def counts(self) -> Counts:
        """Of requests without an adapter."""
        return self.counts_of[None]

    @contextlib.contextmanager
    def places(self, answers: int) -> Iterator[None]:
        """Places for some answers: all of them, or none where they are too many.

        Raises:
            Busy: Too many wait already.
            UsageError: There never are that many places.
            Stopped: The worker was stopped.
        """
        at_once = self.engine.scheduler.most
        most = at_once + self.waiting
        if answers > most:
            raise UsageError(
                f"{answers:,} answers are asked for, and there is room for {most:,}",
                fix="ask for them in several requests",
            )
        self._check(most, max(1, self._open // at_once), answers)
        self._open += answers
        try:
            yield
        finally:
            self._open -= answers

    async def stream(
        self,
        prompt: Sequence[int],
        config: SamplingConfig,
        *,
        end_ids: Collection[int] = (),
        adapter: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """Chunks of one answer. Leaving early (`aclose`, a cancelled task) ends it for good.

        Raises:
            Busy: Too many wait already.
            UsageError: The prompt is empty, too long, or holds unknown ids.
            Stopped: The worker was stopped or its engine failed.
        """
        with self.places(1):
            one = self.placed(prompt, config, end_ids, adapter)
            async with contextlib.aclosing(one) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def placed(
        self,
        prompt: Sequence[int],
        config: SamplingConfig,
        end_ids: Collection[int],
        adapter: str | None = None,
    ) -> AsyncGenerator[Chunk, None]:
        """The same for one that has its place already (`places`)."""
        caller = _Caller(prompt, config, end_ids, asyncio.Queue(), adapter=adapter)
        try:
            if config.constrained:  # it takes a while, and the engine should not wait
                caller.constraint = await beside(constraint_of, config, self.engine.tokenizer)
            self._wishes.put(caller)
            while True:
                found = await caller.told.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if found.finish_reason is not None:
                    return
        finally:
            caller.gone = True
            self._wishes.put(caller)

    def _run(self) -> None:
        while not self._stopping:
            self._listen(block=not len(self.engine))
            if not len(self.engine) or self._stopping:
                continue
            try:
                chunks = self.engine.step()
            except Exception as error:
                self._fail(error)
                continue
            self.counts.steps += 1
            self._tell(chunks)
        self._fail(None)
        self._listen(block=False)

    def _listen(self, *, block: bool) -> None:
        """Take in what is wanted; wait for it where there is nothing else to do."""
        while True:
            try:
                wish = self._wishes.get(block=block)
            except queue.Empty:
                return
            block = False
            if wish is None:
                continue
            if wish.gone:
                self._forget(wish)
            else:
                self._admit(wish)

    def _admit(self, caller: _Caller) -> None:
        if self._stopping:
            return self._send([(caller, Stopped())])
        try:
            caller.number = self.engine.submit(
                caller.prompt,
                caller.config,
                end_ids=caller.end_ids,
                adapter=caller.adapter,
                constraint=caller.constraint,
            )
        except Exception as error:
            return self._send([(caller, error)])
        self._callers[caller.number] = caller
        self.counts_of[caller.adapter].prompt_tokens += len(caller.prompt)
        return None

    def _forget(self, caller: _Caller) -> None:
        if caller.number is not None and self._callers.pop(caller.number, None) is not None:
            self.engine.cancel(caller.number)
            self.counts_of[caller.adapter].cancelled += 1

    def _tell(self, chunks: Sequence[Chunk]) -> None:
        told: list[tuple[_Caller, Any]] = []
        for chunk in chunks:
            caller = self._callers[chunk.index]
            counts = self.counts_of[caller.adapter]
            counts.answer_tokens += len(chunk.ids)
            told.append((caller, chunk))
            if chunk.finish_reason is not None:
                del self._callers[chunk.index]
                counts.answered += 1
        self._send(told)

    def _fail(self, error: Exception | None) -> None:
        """Nobody's answer can go on."""
        stopped = Stopped() if error is None else Stopped(f"the model failed: {error}")
        told = []
        for number, caller in self._callers.items():
            self.engine.cancel(number)
            told.append((caller, stopped))
        self._callers.clear()
        self._send(told)

    def _send(self, told: Sequence[tuple[_Caller, Any]]) -> None:
        def deliver() -> None:
            for caller, found in told:
                caller.told.put_nowait(found)

        if told:
            self._in_loop(deliver)
