"""Linear maps of a network that reads without learning, on a CPU: weights laid out once.

oneDNN multiplies bf16 by weights in blocks and lays plain ones out anew at every call. A network
that does not learn keeps the blocks, at the price of a second copy of its matrices in bf16; and a
GELU behind a product goes into the same pass. Processors without tile registers have a product of
our own for it (`compiled_product.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.nn import compiled_product
from inkstone.nn.linear import FEW_ROWS, Linear, stacked
from inkstone.nn.matmul import cut
from inkstone.nn.pointwise import narrow

WIDE = 2048  # units between two maps, from where on a batch of them leaves the caches
RUN = 256  # rows whose units do not
_MadeOf = tuple[tuple[ReferenceType[nn.Parameter], int, int], ...]  # which, where, which version


class _Blocks(NamedTuple):
    """Maps below each other as a kernel reads them, and by what to tell that they changed."""

    made_of: _MadeOf
    multiply: Callable[[Tensor, bool], Tensor]  # (x, whether a GELU follows) → x Wᵀ + b


_kept: WeakKeyDictionary[Linear, _Blocks] = WeakKeyDictionary()  # by the first of the maps


def project(x: Tensor, linears: Sequence[Linear], *, gelu: bool = False) -> Tensor:
    """x Wᵀ + b, the maps one below the other: [N, d_in] → [N, sum of d_out].

    Args:
        x: [N, d_in].
        linears: Each with a bias, or none of them.
        gelu: Whether a GELU follows (the exact one).
    """
    if (whole := linears[0].compiled(x, linears, gelu=gelu)) is not None:
        return whole
    if not _fits(x, linears):
        y = stacked(x, linears) if len(linears) > 1 else linears[0](x)
        return F.gelu(y) if gelu else y
    return _blocks(x, linears).multiply(x, gelu)


def in_runs(part: Callable[[Tensor], Tensor], x: Tensor, up: Linear) -> Tensor:
    """part(x), a part of a network that takes every row alike: [N, D] → [N, D].

    Where nothing is learned and tiles multiply faster than memory gives, it takes a few rows at a
    time, so that what `up`, its widest map, makes of them is still in the cores' caches when the
    next map reads it.
    """
    if compiled_product.fits(x.shape[1]) or len(up.weight) < WIDE or not _fits(x, [up]):
        return part(x)
    whole = max(1, len(x) // RUN)  # runs; the last one takes what is left, too
    runs = x.split([*[RUN] * (whole - 1), len(x) - RUN * (whole - 1)])
    return torch.cat([part(run) for run in runs])


@functools.cache
def supported() -> bool:
    """Whether this build and this processor multiply bf16 by weights in blocks."""
    instructions = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    known = all(
        hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
    )
    return known and torch.backends.mkldnn.is_available() and bool(instructions())


def forget(network: nn.Module) -> None:
    """Give the memory back that reading has cost."""
    for module in network.modules():
        if isinstance(module, Linear):
            _kept.pop(module, None)


def _fits(x: Tensor, linears: Sequence[Linear]) -> bool:
    width = sum(len(m.weight) for m in linears)
    return (
        not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.ndim == 2
        and len(x) > FEW_ROWS
        and not linears[0].training
        and not cut(x, len(x), width)
        and not torch.compiler.is_compiling()
        and supported()
        and not any(p.is_inference() for p in _parameters(linears))  # has no version
    )


def _parameters(linears: Sequence[Linear]) -> Iterator[nn.Parameter]:
    """All of them; `m.parameters()` looks for parts, which costs a pass a hundredth of its time."""
    for m in linears:
        own = m.parameters() if m._modules else m._parameters.values()
        yield from (p for p in own if p is not None)


def _blocks(x: Tensor, linears: Sequence[Linear]) -> _Blocks:
    now = tuple((ref(p), p.data_ptr(), p._version) for p in _parameters(linears))
    found = _kept.get(linears[0])
    if found is None or not _same(found.made_of, now):
        weight = narrow([m.weight.detach() for m in linears], x.dtype)
        biases = [m.bias.detach().to(x.dtype) for m in linears if m.bias is not None]
        bias = torch.cat(biases) if biases else None
        laid_out = _panels if compiled_product.fits(x.shape[1]) else _onednn
        found = _Blocks(now, laid_out(weight, bias, len(x)))
        _kept[linears[0]] = found
    return found


def _panels(weight: Tensor, bias: Tensor | None, n: int) -> Callable[[Tensor, bool], Tensor]:
    (panels, padded), d_out = compiled_product.pack(weight, bias), len(weight)  # not the weight
    return lambda x, gelu: compiled_product.linear(x, panels, padded, d_out, gelu=gelu)


def _onednn(weight: Tensor, bias: Tensor | None, n: int) -> Callable[[Tensor, bool], Tensor]:
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), n)

    def multiply(x: Tensor, gelu: bool) -> Tensor:
        name, form = ("gelu", "none") if gelu else ("none", "")
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, blocks, bias, name, [], form)
        return y

    return multiply


def _same(then: _MadeOf, now: _MadeOf) -> bool:
    return len(then) == len(now) and all(
        a[0]() is b[0]() and a[1:] == b[1:] for a, b in zip(then, now, strict=True)
    )
