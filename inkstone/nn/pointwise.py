"""What stands between the matmuls of a training step on a CPU: `pointwise.cpp`.

Each function says by `fits` whether it can do the work here; where it cannot, the caller asks
torch, whose kernels go through the memory several times for the same result.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import native

WORTH = 1 << 12  # numbers; fewer are not worth the call
RUN = 1 << 14  # numbers of a partial sum, as in pointwise.cpp
LANES = 16  # numbers that it takes at a time


def fits(x: Tensor) -> bool:
    """Whether the compiled functions take this tensor, and gain by it."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= WORTH
        and not torch.compiler.is_compiling()  # it fuses such passes itself
        and native.library("pointwise") is not None
    )


def cross_entropy(
    scores: Tensor, targets: Tensor, z_loss: float, smoothing: float, *, want_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Facts of each row for its loss; `scores` becomes the gradient of the loss where wanted.

    Args:
        scores: [n, V] bf16, the columns of a row side by side.
        targets: [n] int64, each in [0, V).
        z_loss: As in `loss.chunked_cross_entropy`, like `smoothing`.
        want_gradient: Whether d(loss)/d(scores) is to stand in `scores`.

    Returns:
        log Z, the score of the target, and the mean score: [n] fp32 each.
    """
    n, words = scores.shape
    assert scores.stride(1) == 1
    facts = torch.empty(n, 3)
    targets = targets.contiguous()
    _call(
        "cross_entropy", scores, scores.stride(0), n, words, targets, ctypes.c_float(z_loss),
        ctypes.c_float(smoothing), facts, int(want_gradient),
    )  # fmt: skip
    log_z, at_target, mean = facts.unbind(1)
    return log_z, at_target, mean


def gelu(x: Tensor) -> Tensor:
    """GELU by its tanh form (Hendrycks and Gimpel 2016, section 2), any shape."""
    if x.requires_grad and torch.is_grad_enabled() and fits(x):
        out: Tensor = _Gelu.apply(x)
        return out
    return F.gelu(x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        x = x.contiguous()
        y = torch.empty_like(x)
        _call("gelu", x, y, x.numel())
        ctx.save_for_backward(x)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> Tensor:  # type: ignore[override]
        (x,) = ctx.saved_tensors
        d_y, d_x = d_y.contiguous(), torch.empty_like(x)
        _call("gelu_backward", x, d_y, d_x, x.numel())
        return d_x


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Zero in place of a share of the numbers, the others scaled up (Srivastava et al. 2014).

    Which ones depends on one number drawn from torch's generator. The backward pass finds them
    again by it, so that no mask is kept.

    Args:
        x: Any shape.
        rate: The share, in [0, 1).
        training: Nothing happens otherwise.
    """
    if not training or not rate:
        return x
    if _run_of_numbers(x):
        out: Tensor = _Dropout.apply(x, rate, int(torch.randint(1 << 62, ())))
        return out
    return F.dropout(x, rate)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rate: float, key: int) -> Tensor:  # type: ignore[override]
        ctx.rate, ctx.key = rate, key
        return _thinned(x, rate, key)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return _thinned(d_y, ctx.rate, ctx.key), None, None


def _thinned(x: Tensor, rate: float, key: int) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    name = "dropout_bf16" if x.dtype == torch.bfloat16 else "dropout_fp32"
    below, scale = ctypes.c_uint32(int(rate * 2**32)), ctypes.c_float(1 / (1 - rate))
    _call(name, x, y, x.numel(), key, below, scale)
    return y


def norm_of_sum(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """layer_norm(x + y) over the last dimension, without a graph.

    Args:
        x: [..., width] bf16, the width a multiple of LANES.
        y: The same.
        weight: [width].
        bias: [width].
        eps: ε of the norm.
    """
    x, y, out = x.contiguous(), y.contiguous(), torch.empty_like(x)
    scale = weight.float().contiguous()
    shift = torch.zeros_like(scale) if bias is None else bias.float().contiguous()
    rows, width = x.shape[:-1].numel(), x.shape[-1]
    _call("norm_of_sum", x, y, scale, shift, out, rows, width, ctypes.c_float(eps))
    return out


def narrow(matrices: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The rows of all matrices [n, m] below each other, in the dtype that a matmul runs in."""
    if dtype == torch.bfloat16 and all(_plain(x) and x.numel() >= WORTH for x in matrices):
        out: Tensor = _Narrow.apply(*matrices)
        return out
    parts = [x.to(dtype) for x in matrices]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def widen(x: Tensor, out: Tensor) -> None:
    """Copy bf16 numbers to fp32 ones of the same shape."""
    if fits(x) and x.is_contiguous() and _plain(out):
        _call("widen", x, out, x.numel())
    else:
        out.copy_(x)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm of all numbers of all tensors."""
    if not all(_plain(x) for x in tensors):
        return torch.nn.utils.get_total_norm(tensors)
    sums = torch.empty(sum(-(-x.numel() // RUN) for x in tensors), dtype=torch.float64)
    start = 0
    for x in tensors:
        _call("sums_of_squares", x, x.numel(), sums[start:])
        start += -(-x.numel() // RUN)
    return sums.sum().sqrt().float()


def _plain(x: Tensor) -> bool:
    """Whether a compiled function takes x as a run of fp32 numbers."""
    return x.dtype == torch.float32 and x.is_contiguous() and _run_of_numbers(x, 0)


def _run_of_numbers(x: Tensor, worth: int = WORTH) -> bool:
    """Whether x, or a contiguous copy, lies in this memory as fp32 or bf16, and is worth a call."""
    return (
        type(x) in (Tensor, torch.nn.Parameter)
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and x.numel() >= worth
        and not torch.compiler.is_compiling()
        and native.library("pointwise") is not None
    )


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *matrices: Tensor) -> Tensor:  # type: ignore[override]
        ctx.rows = [len(x) for x in matrices]
        out = matrices[0].new_empty(sum(ctx.rows), *matrices[0].shape[1:], dtype=torch.bfloat16)
        for x, part in zip(matrices, out.split(ctx.rows), strict=True):
            _call("narrow", x, part, x.numel())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        gradients = [torch.empty_like(part, dtype=torch.float32) for part in d_out.split(ctx.rows)]
        for part, gradient in zip(d_out.split(ctx.rows), gradients, strict=True):
            widen(part, gradient)
        return tuple(gradients)


def _call(name: str, *arguments: Any) -> None:
    library = native.library("pointwise")
    assert library is not None
    library[name](*native.arguments(*arguments))
