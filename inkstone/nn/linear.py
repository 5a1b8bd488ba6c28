"""Linear maps and embeddings whose parameters stay in their own precision.

Parameters are fp32 masters; activations run in the model's compute dtype. Each call casts the
weight to the dtype of its input, and autograd casts the gradient back. On a CPU with bf16
instructions the cast costs about 2 % of the matmul that it makes several times faster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.nn.matmul import linear
from inkstone.nn.pointwise import narrow

FEW_ROWS = 64  # below, as in decoding, copying the weights side by side costs more than it saves


Watcher = Callable[[Sequence["Linear"], Tensor], None]
_watcher: Watcher | None = None


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Meanwhile, tell what goes into maps: `watcher(maps of one input, that input)`."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


class Linear(nn.Module):
    """y = x Wᵀ + b, computed in the dtype of x.

    Args:
        d_in: Width of the input.
        d_out: Width of the output.
        bias: Whether b exists.
        maps: How many maps of one input stand below each other in W: the gates of a recurrent cell,
            for example. An optimizer that treats a matrix as a whole (Muon) takes them one by one.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False, maps: int = 1) -> None:
        super().__init__()
        self.maps = maps
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] → [..., d_out]."""
        if _watcher is not None:
            _watcher((self,), x)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return linear(x, narrow([self.weight], x.dtype), bias)

    def compiled(
        self, x: Tensor, linears: Sequence[Linear], *, gelu: bool = False
    ) -> Tensor | None:
        """Several maps of one input by compiled code, where weights have a form of their own for it
        (`quantized_layers.QuantizedLinear`); None where torch is to do it."""
        return None


def stacked(x: Tensor, linears: Sequence[Linear]) -> Tensor:
    """Several linear maps of one input as one matmul: [..., d_in] → [..., sum of d_out].

    The parameters stay apart, so that an optimizer that treats matrices as matrices (Muon) sees
    the query, key and value maps one by one, and so that checkpoints need no surgery.
    """
    if (y := linears[0].compiled(x, linears)) is not None:
        return y
    if not torch.is_grad_enabled() and x.shape[:-1].numel() <= FEW_ROWS:
        return torch.cat([m(x) for m in linears], dim=-1)
    if _watcher is not None:
        _watcher(linears, x)
    weight = narrow([m.weight for m in linears], x.dtype)
    biases: list[Tensor] = [m.bias for m in linears if m.bias is not None]
    bias = torch.cat([b.to(x.dtype) for b in biases]) if biases else None
    return linear(x, weight, bias)


class Embedding(nn.Module):
    """Rows of a table, looked up by index and given in the compute dtype.

    Attributes:
        pending: Where a trainer collects the gradients of the rows that were looked up, to add them
            by `settle`; None for autograd's way. Autograd makes a gradient of the whole table,
            nearly all zeros, and adds it to that of the head, which shares the table.
    """

    def __init__(self, n_rows: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, d_model))
        self.pending: list[tuple[Tensor, Tensor]] | None = None

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[...] int64 → [..., d_model] in `dtype`."""
        if self.pending is None or not (self.weight.requires_grad and torch.is_grad_enabled()):
            return F.embedding(ids, self.weight).to(dtype)
        rows: Tensor = _Rows.apply(self.weight, ids, dtype, self.pending)
        return rows

    def settle(self) -> None:
        """Add the pending gradients to that of the table."""
        for ids, gradient in self.pending or ():
            if self.weight.grad is None:
                self.weight.grad = torch.zeros_like(self.weight)
            self.weight.grad.index_add_(0, ids, gradient.to(self.weight.dtype))
        if self.pending:
            self.pending.clear()


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, weight: Tensor, ids: Tensor, dtype: torch.dtype, pending: list[Any]
    ) -> Tensor:
        ctx.ids, ctx.pending = ids, pending
        return F.embedding(ids, weight).to(dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_rows: Tensor) -> tuple[None, ...]:  # type: ignore[override]
        ctx.pending.append((ctx.ids.reshape(-1), d_rows.reshape(ctx.ids.numel(), -1)))
        return (None, None, None, None)
