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
from inkstone.inference.constrained import Constraint

COLDEST = 1e-30  # a temperature below is no number in fp32
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


def penalize_counts(logits: Tensor, counts: Tensor, frequency: Tensor, presence: Tensor) -> Tensor:
    """Make tokens less likely that an answer holds, as OpenAI's interface describes it.

    Args:
        logits: [B, V].
        counts: [B, V], how often the answer holds each token.
        frequency: [B, 1], taken off for every time.
        presence: [B, 1], taken off once.
    """
    return logits - frequency * counts - presence * (counts > 0)


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


class Draws:
    """What is one answer's own: its settings, its random numbers, and the tokens it has seen.

    Args:
        config: Its settings.
        vocab_size: V.
        device: Where the logits are.
        prompt: Its prompt's ids; needed where repetition is penalized.
        constraint: The form that it has to fit.
    """

    def __init__(
        self,
        config: SamplingConfig,
        vocab_size: int,
        device: torch.device,
        prompt: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.config, self.constraint = config, constraint
        self._source = torch.Generator()
        self._source.manual_seed(secrets.randbits(63) if config.seed is None else config.seed)
        self._drawn: list[float] = []
        self._taken = 0
        self.seen: Tensor | None = None
        if config.repetition_penalty != 1.0:
            self.seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            inside = [token for token in prompt if token < vocab_size]
            self.seen[torch.tensor(inside, dtype=torch.long, device=device)] = True
        self.counts: Tensor | None = None
        if config.presence_penalty or config.frequency_penalty:
            self.counts = torch.zeros(vocab_size, device=device)
        self.bias: Tensor | None = None
        if config.logit_bias:
            self.bias = torch.zeros(vocab_size, device=device)
            for token, value in config.logit_bias.items():
                if 0 <= token < vocab_size:
                    self.bias[token] = value

    @property
    def remembers(self) -> bool:
        """Whether scores depend on the tokens before in other ways than the model's."""
        return not (self.seen is None and self.counts is None and self.constraint is None)

    def uniform(self, ahead: int = 0) -> float:
        """The random number for the next token, or for one that comes `ahead` tokens later."""
        while len(self._drawn) <= self._taken + ahead:
            # on the CPU: the same numbers on every device
            self._drawn = self._drawn[self._taken :]
            self._taken = 0
            self._drawn += torch.rand(DRAWN_AHEAD, generator=self._source).tolist()
        return self._drawn[self._taken + ahead]

    def take(self, token: int) -> None:
        """This token was chosen."""
        if not self.config.greedy:
            self._taken += 1
        if self.seen is not None:
            self.seen[token] = True
        if self.counts is not None:
            self.counts[token] += 1
        if self.constraint is not None:
            self.constraint.take(token)


class Sampler:
    """Chooses the next token of every row of a batch.

    Args:
        rows: What is each row's own; an answer may have several rows, for tokens that come later.
        vocab_size: V.
        device: Where the logits are.
        ahead: How many tokens after the next one a row's is; None: none.
    """

    def __init__(
        self,
        rows: Sequence[Draws],
        vocab_size: int,
        device: torch.device,
        ahead: Sequence[int] | None = None,
    ) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

        self.rows, self.vocab_size = list(rows), vocab_size
        self.ahead = [0] * len(self.rows) if ahead is None else list(ahead)
        configs = [row.config for row in rows]
        self.n_logprobs = [c.top_logprobs if c.logprobs or c.top_logprobs else -1 for c in configs]
        self._greedy = torch.tensor([c.greedy for c in configs], device=device)
        self._temperature = column(
            [max(c.temperature, COLDEST) if c.temperature else 1.0 for c in configs]
        )
        self._top_k = column([float(min(c.top_k or vocab_size, vocab_size)) for c in configs])
        self._top_p = column([c.top_p for c in configs])
        self._min_p = column([c.min_p for c in configs])
        self._penalty = column([c.repetition_penalty for c in configs])
        self._frequency = column([c.frequency_penalty for c in configs])
        self._presence = column([c.presence_penalty for c in configs])
        self._any_greedy = any(c.greedy for c in configs)
        self._all_greedy = all(c.greedy for c in configs)
        self._any_min_p = any(c.min_p > 0 for c in configs)
        self._any_top_p = any(c.top_p < 1 for c in configs)
        # a greedy row needs no candidates
        widths = [1 if c.greedy else min(c.top_k or vocab_size, vocab_size) for c in configs]
        self._widest = max(widths, default=0)
        self._equal_k = all(width == self._widest for width in widths)

    def __call__(self, logits: Tensor) -> tuple[Tensor, list[TokenScore | None]]:
        """Choose one token a row; the rows are told by `Draws.take` which ones count.

        Args:
            logits: [B, V] of the model; not changed.

        Returns:
            The chosen ids [B], and where a row asked for log-probabilities, these.

        Raises:
            ModelError: The model's scores hold NaN or infinity.
        """
        logits = logits.float()
        adjusted = self._adjusted(logits)
        best, likeliest = adjusted.max(-1)
        ids = likeliest
        if not self._all_greedy:
            scores, tokens = self.candidates(adjusted)
            pairs = zip(self.rows, self.ahead, strict=True)
            uniforms = [0.0 if row.config.greedy else row.uniform(n) for row, n in pairs]
            choice = draw(scores, torch.tensor(uniforms, device=logits.device))
            drawn = choice if tokens is None else tokens.gather(-1, choice[:, None])[:, 0]
            ids = torch.where(self._greedy, likeliest, drawn) if self._any_greedy else drawn
        if not bool(best.isfinite().all()):
            raise ModelError(
                "the model's scores are not finite numbers",
                fix="the weights are damaged or the precision is too low; try float32",
            )
        return ids, self._scores(logits, ids)

    def _adjusted(self, logits: Tensor) -> Tensor:
        """Scores after biases and penalties: [B, V]."""
        rows = self.rows
        if any(row.bias is not None for row in rows):
            none = logits.new_zeros(self.vocab_size)
            logits = logits + torch.stack([none if r.bias is None else r.bias for r in rows])
        if any(row.seen is not None for row in rows):
            unseen = torch.zeros(self.vocab_size, dtype=torch.bool, device=logits.device)
            seen = torch.stack([unseen if row.seen is None else row.seen for row in rows])
            logits = penalize_repetition(logits, seen, self._penalty)
        if any(row.counts is not None for row in rows):
            none = logits.new_zeros(self.vocab_size)
            counts = torch.stack([none if r.counts is None else r.counts for r in rows])
            logits = penalize_counts(logits, counts, self._frequency, self._presence)
        if any(row.constraint is not None for row in rows):
            every = torch.ones(self.vocab_size, dtype=torch.bool, device=logits.device)
            masks = [
                every if r.constraint is None else r.constraint.mask(self.vocab_size, every.device)
                for r in rows
            ]
            logits = logits.masked_fill(~torch.stack(masks), -torch.inf)
        return logits

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
