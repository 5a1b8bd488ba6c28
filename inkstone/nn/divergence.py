"""What a student's words lack of a teacher's, without the scores of all tokens at once.

Σ over tokens of T² · KL(p ‖ q), p = softmax(teacher's scores / T), q that of the student (Hinton et
al. 2015, "Distilling the Knowledge in a Neural Network", section 2: gradients shrink with 1/T², so
they are multiplied by T²). As in `loss.py`, some rows are scored, turned into their gradient, and
forgotten. Shapes: N tokens, V words, D and D' the widths of student and teacher.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn.loss import taken_once

CHUNK_BYTES = 1 << 25  # of one fp32 tensor of scores; a few of them are held at a time


class Scored(NamedTuple):
    """States, and the map that scores words from them.

    Attributes:
        states: [N, D].
        weight: [V, D].
        bias: [V] or None.
    """

    states: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def scores(self, rows: slice) -> Tensor:
        """Of some rows: [n, V] fp32."""
        states = self.states[rows]
        bias = None if self.bias is None else self.bias.to(states.dtype)
        return F.linear(states, self.weight.to(states.dtype), bias).float()


def chunked_divergence(
    student: Scored, teacher: Scored, temperature: float, *, chunk: int | None = None
) -> Tensor:
    """Summed divergence in nats, fp32 with a graph to the student's states, weight and bias.

    The gradients are made in the forward pass; a second backward pass through it is an error.

    Args:
        student: N rows.
        teacher: The same rows; nothing of it learns.
        temperature: T, above 0.
        chunk: Rows at a time; by default as many as keep their scores below CHUNK_BYTES.
    """
    n_words = len(student.weight)
    assert len(teacher.weight) == n_words and len(teacher.states) == len(student.states)
    chunk = chunk or max(1, CHUNK_BYTES // (4 * n_words))
    teacher = Scored(*(None if x is None else x.detach() for x in teacher))  # type: ignore[arg-type]
    total: Tensor = _ChunkedDivergence.apply(*student, teacher, temperature, chunk)
    return total


def divergence(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """T² · KL(p ‖ q) of each row, in nats: student's and teacher's [..., L] → [...] fp32."""
    log_q = (scores.float() / temperature).log_softmax(-1)
    log_p = (wanted.float() / temperature).log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)


class _ChunkedDivergence(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher: Scored,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        student = Scored(states.detach(), weight.detach().to(states.dtype), bias)
        want_states, want_weight, want_bias = ctx.needs_input_grad[:3]
        d_states = torch.empty_like(states) if want_states else None
        d_weight = torch.zeros_like(weight) if want_weight else None
        d_bias = torch.zeros_like(bias) if want_bias and bias is not None else None
        total = torch.zeros((), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), chunk):
            rows = slice(start, start + chunk)
            log_q = student.scores(rows).div_(temperature).log_softmax(-1)
            log_p = teacher.scores(rows).div_(temperature).log_softmax(-1)
            p = log_p.exp()
            total += temperature**2 * torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            d_scores = log_q.exp_().sub_(p).mul_(temperature).to(states.dtype)  # T² (q − p) / T
            if d_states is not None:
                d_states[rows] = d_scores @ student.weight
            if d_weight is not None:
                d_weight += d_scores.T @ student.states[rows]
            if d_bias is not None:
                d_bias += d_scores.sum(0, dtype=d_bias.dtype)
        ctx.gradients = (d_states, d_weight, d_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*taken_once(ctx, grad), None, None, None)
