"""Linear maps and embeddings whose parameters stay in their own precision.

Parameters are fp32 masters; activations run in the model's compute dtype. Each call casts the
weight to the dtype of its input, and autograd casts the gradient back. On a CPU with bf16
instructions the cast costs about 2 % of the matmul that it makes several times faster.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 64  # below, as in decoding, copying the weights side by side costs more than it saves


class Linear(nn.Module):
    """y = x Wᵀ + b, computed in the dtype of x.

    Args:
        d_in: Width of the input.
        d_out: Width of the output.
        bias: Whether b exists.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] → [..., d_out]."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def stacked(x: Tensor, linears: Sequence[Linear]) -> Tensor:
    """Several linear maps of one input as one matmul: [..., d_in] → [..., sum of d_out].

    The parameters stay apart, so that an optimizer that treats matrices as matrices (Muon) sees
    the query, key and value maps one by one, and so that checkpoints need no surgery.
    """
    if x.shape[:-1].numel() <= FEW_ROWS and not torch.is_grad_enabled():
        return torch.cat([linear(x) for linear in linears], dim=-1)
    weight = torch.cat([m.weight.to(x.dtype) for m in linears])
    biases: list[Tensor] = [m.bias for m in linears if m.bias is not None]
    bias = torch.cat([b.to(x.dtype) for b in biases]) if biases else None
    return F.linear(x, weight, bias)


class Embedding(nn.Module):
    """Rows of a table, looked up by index and given in the compute dtype."""

    def __init__(self, n_rows: int, d_model: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_rows, d_model))

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[...] int64 → [..., d_model] in `dtype`."""
        return F.embedding(ids, self.weight).to(dtype)
