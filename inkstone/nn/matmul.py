"""Products of matrices, in the pieces that a CPU's bf16 kernels are fast at.

oneDNN, which multiplies bf16 on a CPU, cuts a product into blocks and deals them to the threads. A
result of up to about a thousand rows and columns that is roughly square becomes a single block: one
thread works, all others wait. Here such a result is made in a few runs of rows, each of them flat
enough to be shared. On two cores with AMX that doubles the rate of half of GPT-2's matmuls; where
the cut is not needed it costs nothing that can be measured.

It also compiles a kernel for every shape that it meets, which takes as long as ten to thirty of a
small network's products. Where the number of rows is ours to choose, it is a `regular` one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ONE_BLOCK = 1 << 20  # numbers of a result that may become one block
SMALL = 1 << 16  # a smaller result takes less time than the cut
SIZES = 32  # regular numbers of rows between a power of two and the next
ALIGN = 8  # rows


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b: [..., d_in] → [..., d_out]. `weight` [d_out, d_in] and `bias` in the dtype of x."""
    if torch.compiler.is_compiling():  # before any size is asked for: a graph may leave them open
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if not any(cut(x, rows, width) for width in weight.shape):
        return F.linear(x, weight, bias)
    out: Tensor = _Linear.apply(x, weight, bias)
    return out


def regular(n: int) -> int:
    """The next of few numbers of rows, at most a thirty-second or 7 more than `n`."""
    step = max(ALIGN, (1 << max(0, n - 1).bit_length()) // (2 * SIZES))
    return -(-n // step) * step


def lengthened(x: Tensor) -> Tensor:
    """x [n, d] with rows of zeros behind it, to a regular number where that decides the kernel."""
    more = regular(len(x)) - len(x) if _by_onednn(x) else 0
    return F.pad(x, (0, 0, 0, more)) if more else x


def cut(x: Tensor, n: int, m: int) -> bool:
    """Whether a result [n, m] is made in several runs of rows."""
    return _runs(x, n, m) > 1


def product(a: Tensor, b: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """a b + bias: [n, k] × [k, m] → [n, m], written to `out` where it is given."""
    n, m = len(a), b.shape[1]
    out = a.new_empty(n, m) if out is None else out
    step = -(-n // _runs(a, n, m))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        if bias is None:
            torch.mm(a[rows], b, out=out[rows])
        else:
            torch.addmm(bias, a[rows], b, out=out[rows])
    return out


def _runs(x: Tensor, n: int, m: int) -> int:
    """How many runs of rows a result [n, m] is made in."""
    if not _by_onednn(x) or not SMALL <= n * m <= ONE_BLOCK:
        return 1
    return 1 if n < 0.7 * m or n > 2.1 * m else 2 if n < 1.4 * m else 4


def _by_onednn(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        return product(x.reshape(-1, x.shape[-1]), weight.T, bias).view(*x.shape[:-1], -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        d_y = d_y.reshape(-1, len(weight))
        want_x, want_weight, want_bias = ctx.needs_input_grad
        return (
            product(d_y, weight).view(x.shape) if want_x else None,
            d_y.T @ x.reshape(len(d_y), -1) if want_weight else None,
            d_y.sum(0) if want_bias else None,
        )
