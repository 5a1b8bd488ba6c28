"""One answer as it comes: from tokens to text, and when it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.constrained import Constraint, constraint_of
from inkstone.inference.sampling import Draws, TokenScore
from inkstone.inference.stop import StopMatcher

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
CARRIED = 4  # tokens of the prompt that the decoder is given first: a character has 4 bytes


@dataclass(slots=True)
class Chunk:
    """A piece of one answer.

    Attributes:
        index: Which prompt it belongs to.
        text: New text; whole characters, and nothing that might still become a stop text.
        ids: Tokens since the last chunk, an end-of-text token included.
        finish_reason: None while the answer goes on; "stop" (end-of-text or a stop text) or
            "length" (max_tokens or the end of the context) in its last chunk.
        logprobs: Of these tokens, where asked for.
    """

    index: int
    text: str
    ids: list[int]
    finish_reason: FinishReason | None = None
    logprobs: list[TokenScore] = field(default_factory=list)


@dataclass(slots=True)
class Generation:
    """A whole answer; the attributes are those of `Chunk`."""

    text: str
    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[TokenScore] = field(default_factory=list)


class Answer:
    """One prompt and its answer so far.

    Args:
        index: Its number.
        prompt: Token ids, at least one.
        config: How to choose.
        room: Tokens at most.
        tokenizer: None where no text is wanted.
        draws: What chance and the tokens so far add to the settings.
    """

    def __init__(
        self,
        index: int,
        prompt: list[int],
        config: SamplingConfig,
        room: int,
        tokenizer: Tokenizer | None,
        draws: Draws,
    ) -> None:
        self.index, self.prompt, self.config, self.room = index, prompt, config, room
        self.draws = draws
        self.done = False
        self._count = 0
        self._decoder = None if tokenizer is None else tokenizer.stream()
        for token in prompt[-CARRIED:]:  # the answer goes on in the middle of a text
            self._push(token)
        self._matcher = StopMatcher(config.stop)
        self._ids: list[int] = []
        self._scores: list[TokenScore] = []

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.room - self._count

    def take(self, token: int, score: TokenScore | None, end_ids: frozenset[int]) -> Chunk | None:
        """Add a token; a chunk where there is text to show or the answer ends."""
        self.draws.take(token)
        self._ids.append(token)
        self._count += 1
        if score is not None:
            self._scores.append(score)
        ended = token in end_ids
        text = "" if ended else self._matcher.push(self._push(token))
        form = self.draws.constraint
        complete = form is not None and form.complete
        reason: FinishReason | None = "stop" if ended or complete or self._matcher.stopped else None
        if form is not None and form.broken:
            reason = "length"
        if reason is None and self._count >= self.room:
            reason = "length"
        if reason is not None and not self._matcher.stopped:
            text += self._matcher.push("" if self._decoder is None else self._decoder.flush())
            text += self._matcher.flush()
            reason = "stop" if self._matcher.stopped else reason
        self.done = reason is not None
        if not text and not self.done:
            return None
        chunk = Chunk(self.index, text, self._ids, reason, self._scores)
        self._ids, self._scores = [], []
        return chunk

    def _push(self, token: int) -> str:
        return "" if self._decoder is None else self._decoder.push(token)


def new_answer(
    index: int,
    prompt: Sequence[int],
    config: SamplingConfig,
    tokenizer: Tokenizer | None,
    vocab_size: int,
    model: Any,
    device: torch.device,
    constraint: Constraint | None = None,
) -> Answer:
    """An answer that begins.

    Args:
        index: Its number.
        prompt: Token ids.
        config: How to choose.
        tokenizer: None where no text is wanted.
        vocab_size: Ids that may be chosen.
        model: The model's `Config`.
        device: Where its scores will be.
        constraint: The form that the settings ask for, where it was made already.

    Raises:
        UsageError: The prompt is empty, too long, or holds unknown ids; stop texts or a form are
            given without a tokenizer; the form is malformed or too complex.
    """
    room = model.max_seq_len - len(prompt)  # a list of any length, so that is looked at first
    if room < 1:
        raise UsageError(
            f"prompt {index} has {len(prompt):,} tokens, but the model's context holds "
            f"{model.max_seq_len:,}, the answer included",
            fix="shorten the prompt, or train a model with a larger max_seq_len",
        )
    ids = [int(i) for i in prompt]
    if not ids:
        raise UsageError(f"prompt {index} has no tokens", fix="give an empty text instead")
    if min(ids) < 0 or max(ids) >= model.vocab_size:
        raise UsageError(
            f"prompt {index} holds the id {min(ids) if min(ids) < 0 else max(ids)}, but the "
            f"model's vocabulary is 0 to {model.vocab_size - 1}"
        )
    if config.stop and tokenizer is None:
        raise UsageError("stop texts need a tokenizer", fix="give end_ids instead")
    if constraint is None:
        constraint = constraint_of(config, tokenizer)
    draws = Draws(config, vocab_size, device, ids, constraint)
    return Answer(index, ids, config, min(room, config.max_tokens), tokenizer, draws)
