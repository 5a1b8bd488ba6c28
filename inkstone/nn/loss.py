"""Cross-entropy of a language-model head that never holds the logits of all tokens.

The logits of N tokens over V words are the largest tensor of training (N·V·4 bytes, several times
over in a plain autograd graph). Here a chunk of rows is scored, turned into its gradient in place,
multiplied out into the gradients of hidden states and weights, and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import pointwise
from inkstone.nn.matmul import product, regular

IGNORE_INDEX = -100
CHUNK_BYTES = {"cpu": 1 << 27, "cuda": 1 << 29}  # of one chunk of logits
SOFTMAX_BYTES = 1 << 22  # of the fp32 rows in hand on a CPU: they stay in its cache
ALIGN = 512  # columns; matmul kernels lose a tenth of their speed on an odd row length
GPU_ALIGN = 64  # words; on a GPU an odd number of columns costs up to four fifths of the speed
SLICE = 20_000  # words that a matmul takes at a time on a CPU, at most


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    chunk: int | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, int]:
    """Sum over tokens of −log softmax(hidden · weightᵀ + bias)[target], in nats.

    The gradients are made in the forward pass; a second backward pass through the same loss is an
    error.

    Args:
        hidden: [..., D] in any float dtype; the matmuls run in it, the softmax in fp32.
        weight: [V, D].
        targets: [...] int64; IGNORE_INDEX where no loss is wanted.
        bias: [V].
        chunk: Rows at a time; by default as many as keep a chunk of logits below CHUNK_BYTES.
        z_loss: Weight of the extra term log²Z a token, which keeps logits small (PaLM, section 5).
        label_smoothing: ε: the target has probability 1 − ε + ε/V, every other word ε/V (Szegedy et
            al. 2016, section 7).

    Returns:
        The sum as an fp32 scalar, and the number of targets that were counted.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    counted = targets != IGNORE_INDEX
    n_targets = int(counted.sum())
    if n_targets < len(targets):
        hidden, targets = _counted(hidden, counted), targets[counted]
    if hidden.is_cuda and not label_smoothing:  # which would give the words added a share
        weight, bias = _with_unlikely_words(weight, bias)
    if chunk is None:
        room = CHUNK_BYTES["cpu" if hidden.device.type == "cpu" else "cuda"]
        most = max(16, room // (weight.shape[0] * hidden.element_size()))
        chunk = -(-len(hidden) // max(1, -(-len(hidden) // most)))  # equal chunks
    total: Tensor = _ChunkedCrossEntropy.apply(
        hidden, weight, bias, targets, max(1, chunk), z_loss, label_smoothing
    )
    return total, n_targets


def _counted(hidden: Tensor, counted: Tensor) -> Tensor:
    """The rows that have a target; on a CPU a few others behind them, to a regular number."""
    places = counted.nonzero().squeeze(1)
    if hidden.device.type == "cpu":
        others = (~counted).nonzero().squeeze(1)
        places = torch.cat((places, others[: regular(len(places)) - len(places)]))
    return hidden.index_select(0, places)


def _with_unlikely_words(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """As many words of probability 0 behind the others as make their number a round one."""
    more = -len(weight) % GPU_ALIGN
    if not more:
        return weight, bias
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more), value=-math.inf)


def sampled_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, words: int
) -> tuple[Tensor, int]:
    """An estimate of `chunked_cross_entropy` that scores some of the words (Jean et al. 2015).

    The words that are targets somewhere in the batch are scored as they are, the frequent ones
    among them; of the others a uniform draw stands for all, so that the sum Z of a softmax is
    right on average: Z ≈ Σ over targets' words of exp(s) + (others / drawn) · Σ over drawn of
    exp(s). The draw comes from torch's random numbers.

    Args:
        hidden: [..., D].
        weight: [V, D].
        targets: [...] int64; IGNORE_INDEX where no loss is wanted.
        words: How many words are scored, drawn ones and targets; a multiple of it where the
            targets alone are more. With V or more this is `chunked_cross_entropy`.

    Returns:
        The sum as an fp32 scalar, and the number of targets that were counted.
    """
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    counted = targets != IGNORE_INDEX
    hidden, targets = hidden[counted], targets[counted]
    known, at = targets.unique(return_inverse=True)
    drawn = -(-(len(known) + 1) // words) * words - len(known)
    others = torch.ones(len(weight), dtype=torch.bool, device=targets.device)
    others[known] = False
    rest = others.nonzero().squeeze(1)
    if drawn >= len(rest):
        return chunked_cross_entropy(hidden, weight, targets)
    rest_drawn = rest[torch.randperm(len(rest), device=rest.device)[:drawn]]
    share = weight.new_zeros(len(known) + drawn)
    share[len(known) :] = math.log(len(rest) / drawn)
    chosen = F.embedding(torch.cat((known, rest_drawn)), weight)
    return chunked_cross_entropy(hidden, chosen, at, bias=share)


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
        label_smoothing: float,
    ) -> Tensor:
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        low = pointwise.narrow([weight], hidden.dtype)
        low_bias = None if bias is None else bias.to(hidden.dtype)
        d_hidden = torch.empty_like(hidden) if want_hidden else None
        d_weight = torch.empty_like(weight) if want_weight else None
        d_bias = torch.zeros_like(bias) if want_bias and bias is not None else None
        if d_weight is not None and not len(hidden):
            d_weight.zero_()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        room = hidden.new_empty(min(chunk, len(hidden)), -(-len(weight) // ALIGN) * ALIGN)
        room[:, len(weight) :] = 0  # AMX kernels multiply what stands there by zero: no NaN may
        for start in range(0, len(hidden), chunk):
            rows = hidden[start : start + chunk]
            scores = room[: len(rows), : len(weight)]
            for part in _word_slices(low):
                shift = None if low_bias is None else low_bias[part]
                product(rows, low[part].T, shift, out=scores[:, part])
            wanted = any(ctx.needs_input_grad)
            at = targets[start : start + chunk]
            total += _score(scores[: len(at)], at, z_loss, label_smoothing, want_gradient=wanted)
            scores[len(at) :] = 0  # rows without a target
            if d_hidden is not None:
                d_hidden[start : start + chunk] = _sum_of_products(scores, low)
            if d_weight is not None:
                _add_outer(d_weight, scores, rows, first=start == 0)
            if d_bias is not None:
                d_bias += scores.sum(0, dtype=d_bias.dtype)
        ctx.gradients = (d_hidden, d_weight, d_bias)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return (*taken_once(ctx, grad), None, None, None, None)


def taken_once(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    """`ctx.gradients`, which a loss made in its forward pass, times the gradient of the loss.

    Raises:
        RuntimeError: They were taken already.
    """
    if ctx.gradients is None:
        raise RuntimeError("the gradients of a chunked loss can be taken only once")
    gradients, ctx.gradients = ctx.gradients, None
    if grad.device.type == "cuda" or grad != 1:  # on a GPU the question would make the CPU wait
        return [None if g is None else g.mul_(grad.to(g.dtype)) for g in gradients]
    return list(gradients)


def _score(
    scores: Tensor, targets: Tensor, z_loss: float, smoothing: float, *, want_gradient: bool
) -> Tensor:
    """Sum of the losses of these rows; `scores` [n, V] becomes d(loss)/d(scores) in place."""
    if pointwise.fits(scores):
        log_z, at_target, mean = pointwise.cross_entropy(
            scores, targets, z_loss, smoothing, want_gradient=want_gradient
        )
        return _losses(log_z, at_target, mean, z_loss, smoothing).sum()
    total = torch.zeros((), dtype=torch.float32, device=scores.device)
    for rows in _row_slices(scores):
        low, target = scores[rows], targets[rows, None]
        top = low.amax(1, keepdim=True).float()
        at_target = low.gather(1, target).float()
        p = torch.softmax(low, 1, dtype=torch.float32)
        log_z = top - p.amax(1, keepdim=True).log()  # exact, because no row's largest p is small
        mean = low.mean(1, keepdim=True, dtype=torch.float32) if smoothing else log_z
        total += _losses(log_z, at_target, mean, z_loss, smoothing).sum()
        if want_gradient:
            if z_loss:
                p.mul_(1 + 2 * z_loss * log_z)
            if smoothing:
                p.sub_(smoothing / p.shape[1])
            p.scatter_add_(1, target, torch.full_like(log_z, smoothing - 1.0))
            low.copy_(p)
    return total


def _losses(
    log_z: Tensor, at_target: Tensor, mean: Tensor, z_loss: float, smoothing: float
) -> Tensor:
    loss = log_z - at_target
    if smoothing:
        loss = loss + smoothing * (at_target - mean)
    if z_loss:
        loss = loss + z_loss * log_z.square()
    return loss


def _row_slices(scores: Tensor) -> Iterator[slice]:
    step = max(1, len(scores))
    if scores.device.type == "cpu":
        step = max(1, SOFTMAX_BYTES // (4 * scores.shape[1]))
    for start in range(0, len(scores), step):
        yield slice(start, start + step)


def _word_slices(weight: Tensor) -> Iterator[slice]:
    """Slices of the vocabulary: on a CPU a matmul is faster when its operands fit the cache."""
    count = -(-len(weight) // SLICE) if weight.device.type == "cpu" else 1
    step = max(1, -(-len(weight) // (count * 64)) * 64)  # equal ones
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def _sum_of_products(left: Tensor, right: Tensor) -> Tensor:
    """left [n, V] · right [V, D], summed over slices in fp32."""
    total: Tensor | None = None
    for part in _word_slices(right):
        of_part = product(left[:, part], right[part])
        total = of_part.float() if total is None else total.add_(of_part)
    assert total is not None
    return total


def _add_outer(total: Tensor, left: Tensor, right: Tensor, *, first: bool) -> None:
    """total [V, D] += leftᵀ [V, n] · right [n, D], widened slice by slice while it is in cache."""
    for part in _word_slices(total):
        of_part = left[:, part].T @ right
        if first:
            pointwise.widen(of_part, total[part])
        else:
            total[part].add_(of_part)
