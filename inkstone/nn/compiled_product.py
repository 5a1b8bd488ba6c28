"""Linear maps of networks that read without learning, on a CPU with bf16 in vectors and no tiles.

`product.cpp` keeps such cores busier than oneDNN does; with tiles oneDNN is the faster of the two.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import native

COLUMNS = 64  # of a panel


def fits(d_in: int) -> bool:
    """Whether this processor is such a one, a compiler was here, and rows are made of pairs."""
    return d_in % 2 == 0 and native.library("product") is not None


def pack(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """A map as the source reads it.

    Args:
        weight: [d_out, d_in] in bf16.
        bias: [d_out], or None for zeros.

    Returns:
        Panels [d_out / 64, d_in / 2, 64, 2], and the bias [d_out] in fp32; both with zeros up to a
        whole panel.
    """
    more = -len(weight) % COLUMNS
    panels = F.pad(weight, (0, 0, 0, more)).unflatten(0, (-1, COLUMNS)).unflatten(2, (-1, 2))
    if bias is None:
        bias = weight.new_zeros(len(weight))
    return panels.transpose(1, 2).contiguous(), F.pad(bias.float(), (0, more))


def linear(x: Tensor, panels: Tensor, bias: Tensor, d_out: int, *, gelu: bool) -> Tensor:
    """x Wᵀ + b, and a GELU behind it: [N, d_in] → [N, d_out].

    Args:
        x: [N, d_in] in bf16.
        panels, bias: W and b by `pack`.
        d_out: Width of the output.
        gelu: Whether a GELU follows (the exact one).
    """
    library = native.library("product")
    assert library is not None
    x = x if x.stride(1) == 1 else x.contiguous()
    out = x.new_empty(len(x), d_out)
    numbers = (len(x), x.shape[1], d_out, int(gelu))
    library.product(*native.arguments(x, x.stride(0), panels, bias, *numbers, out))
    return out
