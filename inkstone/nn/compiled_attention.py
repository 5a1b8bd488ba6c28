"""Attention of networks that read without learning, where a CPU multiplies bf16: `attention.cpp`.

torch's kernel takes the same time for the softmax as for both of its products; here all three stay
in the cache of a core, rows of any length stand behind each other, and nothing is laid out anew.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from inkstone.nn import native
from inkstone.nn.packing import Packing

LONGEST = 4096  # tokens of a row whose scores a core's cache holds
WIDTH = 32  # of a head, or a multiple


def fits(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> bool:
    """Whether `attend` can do this here, without a graph: arguments as there."""
    return (
        not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
        and not torch.compiler.is_compiling()
        and q.dtype == torch.bfloat16
        and q.device.type == "cpu"
        and q.shape == k.shape == v.shape
        and q.shape[2] % WIDTH == 0
        and packing.length <= LONGEST
        and all(x.stride(2) == 1 and x.stride(1) == x.shape[2] for x in (q, k, v))
        and native.library("attention") is not None
    )


def attend(q: Tensor, k: Tensor, v: Tensor, packing: Packing) -> Tensor:
    """softmax(q kᵀ / √E) v of the tokens of each row: [N, H, E] → [N, H·E]."""
    library = native.library("attention")
    assert library is not None
    n, heads, width = q.shape
    if packing.real is None:
        starts = torch.arange(packing.batch + 1) * packing.length
    else:
        starts = torch.nn.functional.pad(packing.real.sum(1).cumsum(0), (1, 0))
    out = q.new_empty(n, heads * width)
    out[packing.n_tokens :] = 0
    scale = ctypes.c_float(width**-0.5)
    library.attend(
        *native.arguments(
            q, q.stride(0), k, k.stride(0), v, v.stride(0), starts, packing.batch, heads, width,
            scale, out,
        )
    )  # fmt: skip
    return out
