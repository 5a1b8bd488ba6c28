"""From prompts to text, for the library, the command line and chat.

Where a model can be read by compiled code, an engine does the work (`engine.py`). Elsewhere a batch
is read once, padded on the left, and then grows by one token a row and step. Rows that are
done leave it, so nothing is computed for them, and no row's context is shortened by a neighbour's.
Shapes: B rows, T columns of the longest prompt, V vocab.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.engine import TOKENS_PER_STEP, Engine
from inkstone.inference.sampling import Sampler, TokenScore
from inkstone.inference.stream import Answer, Chunk, Generation, new_answer
from inkstone.nn import compiled_decoder
from inkstone.nn.paged import PAGE_SIZE

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

Prompt = str | Sequence[int]
BATCH_SIZE = 32  # rows that `generate` decodes at a time


class Generator:
    """Continues prompts with a causal model.

    Args:
        model: Of `KIND` "causal".
        tokenizer: None where prompts are ids and no text is wanted.
        device: The model is moved there; None leaves it where it is.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model if device is None else model.to(device)
        self.tokenizer = tokenizer
        self.max_seq_len: int = model.config.max_seq_len
        # a vocabulary that was rounded up has ids that no text ever trained
        self.vocab_size: int = model.config.vocab_size
        self.end_ids: frozenset[int] = frozenset()
        if tokenizer is not None:
            self.vocab_size = min(self.vocab_size, tokenizer.vocab_size)
            self.end_ids = frozenset({tokenizer.eos_id})

    def encode(self, text: str) -> list[int]:
        """Ids of a text that starts a document: behind begin-of-text, or end-of-text without one.

        In training every document follows the end-of-text of the one before.

        Raises:
            UsageError: There is no tokenizer.
        """
        if self.tokenizer is None:
            raise UsageError(
                "this model has no tokenizer, so a prompt cannot be text",
                fix="give token ids, or a model folder that holds a tokenizer.json",
            )
        bos = self.tokenizer.bos_id
        return [self.tokenizer.eos_id if bos is None else bos, *self.tokenizer.encode(text)]

    def generate(
        self,
        prompts: Sequence[Prompt],
        config: SamplingConfig | Sequence[SamplingConfig] | None = None,
        *,
        end_ids: Collection[int] | None = None,
        batch_size: int = BATCH_SIZE,
    ) -> list[Generation]:
        """Answers to any number of prompts, in their order.

        Args:
            prompts: Texts or token ids.
            config: For all, or one for each.
            end_ids: Tokens that end an answer; None for end-of-text.
            batch_size: Rows decoded together; prompts of similar length share a batch.

        Raises:
            UsageError: A prompt is empty or does not fit the context; settings do not fit.
        """
        rows = self._rows(prompts, config)
        by_length = sorted(rows, key=lambda row: len(row.prompt))
        answers: list[Generation] = [Generation("", [], "stop") for _ in rows]
        for start in range(0, len(rows), max(1, batch_size)):
            batch = by_length[start : start + max(1, batch_size)]
            for chunk in self._decode(batch, self._ends(end_ids)):
                answer = answers[chunk.index]
                answer.text += chunk.text
                answer.ids += chunk.ids
                answer.logprobs += chunk.logprobs
                answer.finish_reason = chunk.finish_reason or answer.finish_reason
        return answers

    def stream(
        self,
        prompts: Prompt | Sequence[Prompt],
        config: SamplingConfig | Sequence[SamplingConfig] | None = None,
        *,
        end_ids: Collection[int] | None = None,
    ) -> Iterator[Chunk]:
        """Chunks of the answers as they come, of one prompt or of several in one batch.

        Args and errors as in `generate`; errors are raised here, before the first chunk.
        """
        single = isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], Integral))
        several: Any = [prompts] if single else prompts
        return self._decode(self._rows(several, config), self._ends(end_ids))

    def _ends(self, end_ids: Collection[int] | None) -> frozenset[int]:
        return self.end_ids if end_ids is None else frozenset(end_ids)

    def _rows(
        self,
        prompts: Sequence[Prompt],
        config: SamplingConfig | Sequence[SamplingConfig] | None,
    ) -> list[Answer]:
        if isinstance(config, SamplingConfig) or config is None:
            shared = config or SamplingConfig()
            seeds = [None if shared.seed is None else (shared.seed + i) % (1 << 63)
                     for i in range(len(prompts))]  # fmt: skip
            configs = [shared.model_copy(update={"seed": seed}) for seed in seeds]
        else:
            configs = list(config)
        if len(configs) != len(prompts):
            raise UsageError(f"{len(prompts)} prompts came with {len(configs)} sampling settings")
        return [
            self._row(i, prompt, own)
            for i, (prompt, own) in enumerate(zip(prompts, configs, strict=True))
        ]

    def _row(self, index: int, prompt: Prompt, config: SamplingConfig) -> Answer:
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        device = self.model.head_weight.device
        return new_answer(
            index, ids, config, self.tokenizer, self.vocab_size, self.model.config, device
        )

    def _decode(self, rows: list[Answer], end_ids: frozenset[int]) -> Iterator[Chunk]:
        if not rows:
            return
        if compiled_decoder.reader(self.model) is not None:
            yield from self._read(rows, end_ids)
            return
        was_training = self.model.training
        self.model.eval()
        try:
            batch = _Batch(self.model, rows, self.vocab_size)
            while batch.rows:
                ids, scores = batch.step()
                going = []
                for place, row in enumerate(batch.rows):
                    chunk = row.take(ids[place], scores[place], end_ids)
                    if chunk is not None:
                        yield chunk
                    if not row.done:
                        going.append(place)
                if len(going) < len(batch.rows):
                    batch.keep(going)
        finally:
            self.model.train(was_training)

    def _read(self, rows: list[Answer], end_ids: frozenset[int]) -> Iterator[Chunk]:
        """By an engine of its own, which has what a server's has."""
        pages = sum(-(-(len(row.prompt) + row.room) // PAGE_SIZE) + 1 for row in rows)
        engine = Engine(
            self.model, self.tokenizer, most=len(rows),
            tokens_per_step=max(TOKENS_PER_STEP, len(rows)),
            cache_tokens=pages * PAGE_SIZE,
        )  # fmt: skip
        for row in rows:
            engine.add(row, end_ids)
        while len(engine):
            yield from engine.step()


class _Batch:
    """The tensors of the rows that are still going."""

    @torch.inference_mode()
    def __init__(self, model: Any, rows: list[Answer], vocab_size: int) -> None:
        self.model, self.rows, self.vocab_size = model, rows, vocab_size
        self.device = model.head_weight.device
        width = max(len(row.prompt) for row in rows)
        longest = width + max(row.room for row in rows)
        self.cache = model.new_cache(len(rows), min(model.config.max_seq_len, longest))
        prompts = [row.prompt for row in rows]
        padded = [[0] * (width - len(ids)) + ids for ids in prompts]
        self._new = torch.tensor(padded, device=self.device)
        self._mask: Tensor | None = None
        if any(len(ids) < width for ids in prompts):
            real = [[False] * (width - len(ids)) + [True] * len(ids) for ids in prompts]
            self._mask = torch.tensor(real, device=self.device)
        self.sampler = Sampler([row.draws for row in rows], vocab_size, self.device)

    @torch.inference_mode()
    def step(self) -> tuple[list[int], list[TokenScore | None]]:
        """Read what is new and choose the next token of every row."""
        hidden = self.model.hidden(self._new, attention_mask=self._mask, cache=self.cache)
        logits = self.model.logits(hidden[:, -1])[:, : self.vocab_size]
        ids, scores = self.sampler(logits)
        self._new, self._mask = ids[:, None], None
        return ids.tolist(), scores

    @torch.inference_mode()
    def keep(self, places: list[int]) -> None:
        """Drop the rows that are done, and the padding that only they made necessary."""
        self.rows = [self.rows[place] for place in places]
        if not places:
            return
        index = torch.tensor(places, device=self.device)
        self.cache.reorder(index)
        self.cache.drop_padding()
        self.sampler = Sampler([row.draws for row in self.rows], self.vocab_size, self.device)
        self._new = self._new[index]
