"""Cross-entropy of a language-model head that never holds the logits of all tokens.

The logits of N tokens over V words are the largest tensor of training (N·V·4 bytes, several times
over in a plain autograd graph). Here a chunk of rows is scored, turned into its gradient in place,
multiplied out into the gradients of hidden states and weights, and forgotten.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

IGNORE_INDEX = -100
CHUNK_BYTES = 1 << 27  # of one chunk of logits
SOFTMAX_BYTES = 1 << 22  # of the fp32 rows in hand: they stay in the cache of a core


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    z_loss: float = 0.0,
) -> tuple[Tensor, int]:
    """Sum over tokens of −log softmax(hidden · weightᵀ + bias)[target], in nats.

    Args:
        hidden: [N, D] (or [..., D]) in any float dtype; the matmuls run in it.
        weight: [V, D].
        targets: [N] int64; IGNORE_INDEX where no loss is wanted.
        bias: [V].
        chunk: Rows at a time; chosen so that the logits take at most CHUNK_BYTES if None.
        z_loss: Weight of the extra term log²Z a token, which keeps logits small (PaLM, section 5).

    Returns:
        The sum as an fp32 scalar, and the number of targets that were counted.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    n_targets = int((targets != IGNORE_INDEX).sum())
    if chunk is None:
        chunk = max(16, CHUNK_BYTES // (weight.shape[0] * hidden.element_size()))
    total: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, bias, targets, chunk, z_loss)
    return total, n_targets


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        chunk: int,
        z_loss: float,
    ) -> Tensor:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        low = weight.to(hidden.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_weight = None
        d_bias = torch.zeros_like(bias) if want_bias and bias is not None else None
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            scores = hidden[rows] @ low.T
            total += _score_rows(scores, bias, targets[rows], z_loss, any(ctx.needs_input_grad))
            if d_hidden is not None:
                torch.mm(scores, low, out=d_hidden[rows])
            if want_weight:
                product = (scores.T @ hidden[rows]).to(weight.dtype)
                d_weight = product if d_weight is None else d_weight.add_(product)
            if d_bias is not None:
                d_bias += scores.sum(0, dtype=d_bias.dtype)
        if want_weight and d_weight is None:
            d_weight = torch.zeros_like(weight)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        scaled = [None if g is None else g.mul_(grad.to(g.dtype)) for g in ctx.saved_tensors]
        return (*scaled, None, None, None)


def _score_rows(
    scores: Tensor, bias: Tensor | None, targets: Tensor, z_loss: float, want_gradient: bool
) -> Tensor:
    """Sum of the losses of these rows; `scores` [n, V] becomes d(loss)/d(scores) in place."""
    total = torch.zeros((), dtype=torch.float32, device=scores.device)
    step = len(scores)
    if scores.device.type == "cpu":
        step = max(1, SOFTMAX_BYTES // (4 * scores.shape[1]))
    for start in range(0, len(scores), step):
        low = scores[start : start + step]
        work = low.float()
        if bias is not None:
            work = work + bias
        counted = targets[start : start + step] != IGNORE_INDEX
        target = targets[start : start + step].where(counted, 0)[:, None]
        log_z = work.logsumexp(1, keepdim=True)
        loss = log_z - work.gather(1, target)
        slope = None
        if z_loss:
            loss = loss + z_loss * log_z.square()
            slope = 1 + 2 * z_loss * log_z
        total += loss[:, 0].where(counted, 0).sum()
        if want_gradient:
            work = work.sub_(log_z).exp_()
            if slope is not None:
                work.mul_(slope)
            work.scatter_add_(1, target, torch.full_like(log_z, -1.0))
            low.copy_(work.mul_(counted[:, None]))
    return total
