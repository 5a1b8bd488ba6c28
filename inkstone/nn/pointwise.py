"""What stands between the matmuls of a training step on a CPU, in bf16: `pointwise.cpp`.

Each function says by `fits` whether it can do the work here; where it cannot, the caller asks
torch, whose kernels go through the memory several times for the same result.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import native

WORTH = 1 << 12  # numbers; fewer are not worth the call


def fits(x: Tensor) -> bool:
    """Whether the compiled functions take this tensor, and gain by it."""
    return (
        x.dtype == torch.bfloat16
        and x.device.type == "cpu"
        and x.numel() >= WORTH
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


def _call(name: str, *arguments: Any) -> None:
    library = native.library("pointwise")
    assert library is not None
    library[name](
        *(
            ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor)
            else ctypes.c_int64(a) if isinstance(a, int) else a
            for a in arguments
        )
    )  # fmt: skip
