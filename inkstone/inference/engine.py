"""Many answers at once: requests come and go while the model reads what they need, step by step.

A step is planned by the scheduler, read by the model in one pass, all tokens side by side, and
every request whose text was read to its end gets a next token, or several where it was guessed
ahead.
Shapes: N tokens of a step, C places whose scores are wanted, V vocab.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inkstone import registry
from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.constrained import Constraint
from inkstone.inference.pages import Pages
from inkstone.inference.sampling import Sampler
from inkstone.inference.scheduler import Part, Request, Scheduler
from inkstone.inference.speculative import Guesser
from inkstone.inference.stream import Answer, Chunk, new_answer
from inkstone.nn import compiled_decoder
from inkstone.nn.adapters import AdaptedModel, Pairs, check
from inkstone.nn.compiled_adapters import AdaptedDecoder
from inkstone.nn.paged import LaidOut, Layout

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

MOST = 64  # requests at once
TOKENS_PER_STEP = 512
CACHE_BYTES = 1 << 30
LOOKED_BACK = 16  # tokens before a text's new ones that a model is told


@dataclass(eq=False)
class _Running:
    request: Request
    answer: Answer
    end_ids: frozenset[int]


class Engine:
    """Answers requests of one model.

    Args:
        model: Of `KIND` "causal".
        tokenizer: None where no text is wanted.
        most: Requests at once; others wait.
        tokens_per_step: Tokens of one pass, at most.
        cache_bytes: Keys and values of all requests together; enough for one of the longest is
            taken in any case.
        cache_tokens: The same, as a number of tokens that is enough.
        guesser: Guesses tokens ahead; the answers stay the same.
        adapters: LoRA changes that a request may ask for, by name: W x + (α / r) · B A x, for its
            rows alone, in the same pass as everybody else's.

    Attributes:
        adapters: Their names, in the order given.

    Raises:
        UsageError: A setting is out of range.
        ModelError: An adapter does not fit the model.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None = None,
        *,
        most: int = MOST,
        tokens_per_step: int = TOKENS_PER_STEP,
        cache_bytes: int = CACHE_BYTES,
        cache_tokens: int | None = None,
        guesser: Guesser | None = None,
        adapters: Mapping[str, Pairs] | None = None,
    ) -> None:
        if not 1 <= most <= tokens_per_step:
            raise UsageError(
                f"{most} requests at once and {tokens_per_step} tokens a step do not fit together",
                fix="every request takes a token of a step",
            )
        self.model = model.eval()
        self.adapters = tuple(adapters or ())
        self._reader: Any = _reader(model, adapters or {})
        self.tokenizer, self.guesser = tokenizer, guesser
        self.device = model.head_weight.device
        self.max_seq_len: int = model.config.max_seq_len
        self.vocab_size: int = model.config.vocab_size
        if tokenizer is not None:
            self.vocab_size = min(self.vocab_size, tokenizer.vocab_size)
        longest = self.max_seq_len + 1
        fitting = cache_bytes // max(1, self._reader.token_bytes)
        n_tokens = cache_tokens or max(longest, min(fitting, most * longest))
        self.cache: LaidOut
        self._n_pages: int
        self.cache, self._n_pages = self._reader.new_pages(most, n_tokens)
        self.scheduler = Scheduler(self._new_pages(), tokens_per_step=tokens_per_step, most=most)
        self._running: dict[int, _Running] = {}
        self._by_request: dict[Request, _Running] = {}
        self._next = 0
        self._sampler: Sampler | None = None

    def __len__(self) -> int:
        """Requests that are not answered yet."""
        return len(self._running)

    def submit(
        self,
        prompt: Sequence[int],
        config: SamplingConfig,
        *,
        end_ids: Collection[int] = (),
        constraint: Constraint | None = None,
        adapter: str | None = None,
    ) -> int:
        """Queue a request.

        Args:
            prompt: Token ids.
            config: How to choose, and when to end.
            end_ids: Tokens that end the answer.
            constraint: The form that `config` asks for, where it was made already.
            adapter: The one to read and answer with; None for the model as it is.

        Returns:
            Its number, which its chunks carry.

        Raises:
            UsageError: The prompt is empty, too long, or holds unknown ids, or there is no such
                adapter.
        """
        number = self._number(adapter)
        answer = new_answer(
            self._next, prompt, config, self.tokenizer, self.vocab_size, self.model.config,
            self.device, constraint,
        )  # fmt: skip
        self._next += 1
        self.add(answer, end_ids, number)
        return answer.index

    def add(self, answer: Answer, end_ids: Collection[int], adapter: int = 0) -> None:
        """Queue an answer that has not begun, under its own number."""
        running = _Running(Request(list(answer.prompt), adapter), answer, frozenset(end_ids))
        self._running[answer.index] = self._by_request[running.request] = running
        self.scheduler.add(running.request)

    def cancel(self, number: int) -> None:
        """Forget a request; one that is answered already is no error."""
        running = self._running.pop(number, None)
        if running is not None:
            del self._by_request[running.request]
            self.scheduler.remove(running.request)

    @torch.inference_mode()
    def step(self) -> list[Chunk]:
        """One pass of the model: what there is to tell after it, in no order.

        Raises:
            ModelError: The model's scores are not finite. Nothing was added to any answer.
        """
        if self.guesser is not None and self.cache.rewinds:
            self._guess(self.guesser)
        parts = self.scheduler.plan()
        if not parts:
            return []
        try:
            tokens, scores = self._choose(parts, self._read(parts))
        except BaseException:
            self.scheduler.restart(self._new_pages())  # what is in them is not known
            raise
        chunks: list[Chunk] = []
        first = 0
        for part in parts:
            running = self._by_request[part.request]
            for place in range(part.scored):
                token = tokens[first + place]
                part.request.ids.append(token)
                chunk = running.answer.take(token, scores[first + place], running.end_ids)
                if chunk is not None:
                    chunks.append(chunk)
                guessed = part.ids[len(part.ids) - part.scored + place + 1 :][:1]
                if running.answer.done or guessed != (token,):
                    break
            first += part.scored
        self.scheduler.done(parts)
        for part in parts:
            if self._by_request[part.request].answer.done:
                self.cancel(self._by_request[part.request].answer.index)
        return chunks

    def _number(self, adapter: str | None) -> int:
        if adapter is None:
            return 0
        if adapter not in self.adapters:
            near = registry.did_you_mean(adapter, self.adapters)
            raise UsageError(f"there is no adapter {adapter!r}", fix=near)
        return 1 + self.adapters.index(adapter)

    def _new_pages(self) -> Pages:
        return Pages(self._n_pages, self.cache.page_size)

    def _guess(self, guesser: Guesser) -> None:
        """Ask for tokens ahead where a next one is all that is missing."""
        ready = [r for r in self.scheduler.running if r.unread == 1]
        answers = [self._by_request[request].answer for request in ready]
        # what penalizes repetition depends on whether a guess is right
        rooms = [0 if a.draws.remembers else a.left - 1 for a in answers]
        guesses = guesser.guess([r.ids for r in ready], [a.draws for a in answers], rooms)
        for request, guess, room in zip(ready, guesses, rooms, strict=True):
            request.draft = [int(token) for token in guess[:room]]

    def _read(self, parts: Sequence[Part]) -> Tensor:
        """Scores of what comes next: [C, V]."""
        before = [p.request.ids[max(0, p.start - LOOKED_BACK) : p.start] for p in parts]
        self.cache.begin(
            Layout.of(
                [p.start for p in parts], [len(p.ids) for p in parts],
                [p.request.pages for p in parts], before, self.device,
                [p.request.adapter for p in parts],
            )
        )  # fmt: skip
        ids = [token for part in parts for token in part.ids]
        hidden = self._reader.hidden(torch.tensor([ids], device=self.device), cache=self.cache)[0]
        wanted: list[int] = []
        end = 0
        for part in parts:
            end += len(part.ids)
            wanted += range(end - part.scored, end)
        logits: Tensor = self._reader.logits(
            hidden[torch.tensor(wanted, dtype=torch.long, device=self.device)]
        )
        return logits[:, : self.vocab_size]

    def _choose(self, parts: Sequence[Part], logits: Tensor) -> tuple[list[int], list[Any]]:
        """A token for each place, and what the model thought of it."""
        if not len(logits):
            return [], []
        places = [
            (self._by_request[p.request].answer.draws, n) for p in parts for n in range(p.scored)
        ]
        rows, ahead = [row for row, _ in places], [n for _, n in places]
        sampler = self._sampler
        if sampler is None or sampler.rows != rows or sampler.ahead != ahead:
            sampler = self._sampler = Sampler(rows, self.vocab_size, self.device, ahead)
        ids, scores = sampler(logits)
        return ids.tolist(), scores


def _reader(model: Any, adapters: Mapping[str, Pairs]) -> Any:
    """What reads for an engine: compiled code where it can, else torch."""
    compiled = compiled_decoder.reader(model)
    if not adapters:
        return compiled or model
    for name, pairs in adapters.items():
        check(model, pairs, name)
    own = list(adapters.values())
    return AdaptedModel(model, own) if compiled is None else AdaptedDecoder(compiled, own)
