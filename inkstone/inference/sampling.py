"""From scores to the next token: pure functions on logits [B, V], and the sampler of a batch.

Every row has its own settings and its own stream of random numbers, so an answer depends on its
prompt, its settings and its seed alone. Shapes: B rows, V vocab, C candidates that are left.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.inference.config import SamplingConfig

DRAWN_AHEAD = 256  # random numbers are drawn for this many tokens at a time


@dataclass(frozen=True, slots=True)
class TokenScore:
    """What the model thought of a token, in nats.

    Attributes:
        id: The token that was chosen.
        logprob: Its log-probability before penalty, temperature and filters.
        top: The likeliest tokens and theirs, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def penalize_repetition(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Make tokens that were there before less likely (Keskar et al. 2019, section 4.1).

    Args:
        logits: [B, V].
        seen: [B, V] bool, the tokens of prompt and answer.
        penalty: [B, 1].

    Returns:
        [B, V]: scores of seen tokens divided by the penalty if positive, multiplied if negative.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def temper(logits: Tensor, temperature: Tensor) -> Tensor:
    """(logits − max) / temperature: [B, V] and [B, 1] → [B, V].

    The shift changes no probability and keeps small temperatures from overflowing.
    """
    return (logits - logits.amax(-1, keepdim=True)) / temperature


def keep_top_k(ranked: Tensor, k: Tensor) -> Tensor:
    """Of scores in falling order [B, C], whether each is among its row's first k [B, 1]."""
    return torch.arange(ranked.shape[-1], device=ranked.device) < k


def keep_top_p(ranked: Tensor, p: Tensor) -> Tensor:
    """Nucleus sampling (Holtzman et al. 2020, equation 2) on scores in falling order.

    Args:
        ranked: [B, C] scores; −inf where a candidate was dropped before.
        p: [B, 1].

    Returns:
        [B, C] bool: the shortest beginning whose probabilities reach p; never empty.
    """
    probs = ranked.softmax(-1)
    before = probs.cumsum(-1) - probs
    keep = before < p
    keep[..., 0] = True
    return keep


def keep_min_p(scores: Tensor, min_p: Tensor) -> Tensor:
    """Tokens at least `min_p` times as likely as the likeliest (Nguyen et al. 2024).

    Args:
        scores: [B, C] in any order.
        min_p: [B, 1]; 0 keeps all.

    Returns:
        [B, C] bool, never empty.
    """
    return scores >= scores.amax(-1, keepdim=True) + min_p.log()


def draw(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Invert the cumulative distribution softmax(scores) at `uniforms`.

    Args:
        scores: [B, C]; −inf is never drawn.
        uniforms: [B] in [0, 1), with at most 24 bits, so that rounding cannot reach 1.

    Returns:
        [B] int64 column of each row's choice.
    """
    mass = scores.double().softmax(-1).cumsum(-1)
    wanted = uniforms.double()[:, None] * mass[:, -1:]
    return torch.searchsorted(mass, wanted, right=True)[:, 0]


class Sampler:
    """Chooses the next token of every row of a batch.

    Args:
        configs: One a row.
        vocab_size: V.
        device: Where the logits are.
        prompts: The prompts' ids, a row each; needed where repetition is penalized.
    """

    def __init__(
        self,
        configs: Sequence[SamplingConfig],
        vocab_size: int,
        device: torch.device,
        prompts: Sequence[Sequence[int]],
    ) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self.vocab_size = vocab_size
        self.n_logprobs = [c.top_logprobs if c.logprobs or c.top_logprobs else -1 for c in configs]
        self._step = 0
        self._uniforms = torch.empty(0)
        self._greedy = torch.tensor([c.greedy for c in configs], device=device)
        self._temperature = column([c.temperature or 1.0 for c in configs])
        self._top_k = column([float(min(c.top_k or vocab_size, vocab_size)) for c in configs])
        self._top_p = column([c.top_p for c in configs])
        self._min_p = column([c.min_p for c in configs])
        self._penalty = column([c.repetition_penalty for c in configs])
        self._sources = [_random_source(c.seed) for c in configs]
        self._seen: Tensor | None = None
        if any(c.repetition_penalty != 1.0 for c in configs):
            self._seen = torch.zeros(len(configs), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in zip(self._seen, prompts, strict=True):
                inside = [token for token in prompt if token < vocab_size]
                row[torch.tensor(inside, dtype=torch.long, device=device)] = True
        self._decide_work()

    def _decide_work(self) -> None:
        """What this batch asks for, looked up once and not at every token."""
        self._any_greedy = bool(self._greedy.any())
        self._all_greedy = bool(self._greedy.all())
        self._any_min_p = bool((self._min_p > 0).any())
        self._any_top_p = bool((self._top_p < 1).any())
        # a greedy row needs no candidates
        widths = torch.where(self._greedy, 1, self._top_k[:, 0].long())
        self._widest = int(widths.max()) if len(widths) else 0
        self._equal_k = bool((widths == self._widest).all())

    def keep_rows(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was."""
        self._greedy = self._greedy[rows]
        for name in ("_temperature", "_top_k", "_top_p", "_min_p", "_penalty"):
            setattr(self, name, getattr(self, name)[rows])
        kept = rows.tolist()
        self._sources = [self._sources[i] for i in kept]
        self.n_logprobs = [self.n_logprobs[i] for i in kept]
        if not self._all_greedy and self._step % DRAWN_AHEAD:
            self._uniforms = self._uniforms[rows]
        if self._seen is not None:
            self._seen = self._seen[rows]
        self._decide_work()

    def __call__(self, logits: Tensor) -> tuple[Tensor, list[TokenScore | None]]:
        """Choose one token a row.

        Args:
            logits: [B, V] of the model; not changed.

        Returns:
            The chosen ids [B], and where a row asked for log-probabilities, these.

        Raises:
            ModelError: The model's scores hold NaN or infinity.
        """
        logits = logits.float()
        adjusted = logits
        if self._seen is not None:
            adjusted = penalize_repetition(logits, self._seen, self._penalty)
        best, likeliest = adjusted.max(-1)
        ids = likeliest
        if not self._all_greedy:
            scores, tokens = self.candidates(adjusted)
            choice = draw(scores, self._next_uniforms())
            drawn = choice if tokens is None else tokens.gather(-1, choice[:, None])[:, 0]
            ids = torch.where(self._greedy, likeliest, drawn) if self._any_greedy else drawn
        if self._seen is not None:
            self._seen.scatter_(1, ids[:, None], True)
        self._step += 1
        if not bool(best.isfinite().all()):
            raise ModelError(
                "the model's scores are not finite numbers",
                fix="the weights are damaged or the precision is too low; try float32",
            )
        return ids, self._scores(logits, ids)

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens that may be drawn, after temperature, top-k, top-p and min-p, in that order.

        Args:
            logits: [B, V].

        Returns:
            Scores [B, C], −inf for what was dropped, and the tokens [B, C] they belong to (None
            when column and token are the same). Tokens rise from left to right, so that a random
            number means the same token whatever the neighbours' settings are.
        """
        scores = temper(logits, self._temperature)
        tokens = None
        if self._widest < self.vocab_size:
            scores, tokens = scores.topk(self._widest, dim=-1)
        elif self._any_top_p or not self._equal_k:
            scores, tokens = scores.sort(dim=-1, descending=True)
        if not self._equal_k:
            scores = scores.masked_fill(~keep_top_k(scores, self._top_k), -torch.inf)
        if self._any_top_p:
            scores = scores.masked_fill(~keep_top_p(scores, self._top_p), -torch.inf)
        if self._any_min_p:
            scores = scores.masked_fill(~keep_min_p(scores, self._min_p), -torch.inf)
        if tokens is None:
            return scores, None
        if self._widest == self.vocab_size:
            return torch.empty_like(scores).scatter_(-1, tokens, scores), None
        tokens, order = tokens.sort(dim=-1)
        return scores.gather(-1, order), tokens

    def _next_uniforms(self) -> Tensor:
        """[B] random numbers, each from its row's own source."""
        place = self._step % DRAWN_AHEAD
        if place == 0:
            # drawn on the CPU: the same numbers on every device
            rows = [torch.rand(DRAWN_AHEAD, generator=source) for source in self._sources]
            self._uniforms = torch.stack(rows).to(self._temperature.device)
        return self._uniforms[:, place]

    def _scores(self, logits: Tensor, ids: Tensor) -> list[TokenScore | None]:
        if max(self.n_logprobs, default=-1) < 0:
            return [None] * len(ids)
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(-1, ids[:, None])[:, 0].tolist()
        width = min(max(self.n_logprobs), self.vocab_size)
        values, tokens = (t.tolist() for t in logprobs.topk(width, dim=-1))
        return [
            TokenScore(i, own[r], tuple(zip(tokens[r][:n], values[r][:n], strict=True)))
            if n >= 0
            else None
            for r, (i, n) in enumerate(zip(ids.tolist(), self.n_logprobs, strict=True))
        ]


def _random_source(seed: int | None) -> torch.Generator:
    source = torch.Generator()
    source.manual_seed(secrets.randbits(63) if seed is None else seed)
    return source
