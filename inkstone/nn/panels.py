"""Weights as `panels.h` reads them: 32 rows side by side, in the order in which they are used."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import native
from inkstone.nn.quantized import GROUP, Quantized

WIDE = 32  # rows of a panel
PIECE_BYTES = 64 << 20
LINE_BYTES = 64  # where a panel may begin
FORMATS = ("fp32", "bf16", "int8", "int4")


class Map(ctypes.Structure):
    """A map as the C++ sources take it."""

    _fields_ = (
        ("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("d_in", ctypes.c_int64),
        ("d_out", ctypes.c_int64), ("format", ctypes.c_int64),
    )  # fmt: skip


@dataclass(frozen=True)
class Panels:
    """A map y = W x + b.

    Attributes:
        memory: The panels, as bytes.
        bias: [d_out] fp32 and zeros up to a whole panel.
        d_in: A multiple of 32.
        d_out: Any.
        format: One of `FORMATS`.
    """

    memory: Tensor
    bias: Tensor
    d_in: int
    d_out: int
    format: str

    @property
    def map(self) -> Map:
        """It lives as long as this object does."""
        numbers = (self.d_in, self.d_out, FORMATS.index(self.format))
        return Map(self.memory.data_ptr(), self.bias.data_ptr(), *numbers)


class Shelf:
    """Panels of many maps, side by side in a few large pieces of memory."""

    def __init__(self) -> None:
        self._free = native.memory(0)

    def put(self, panels: Panels) -> Panels:
        """The same panels, on the shelf."""
        n_bytes = panels.memory.numel()
        if self._free.numel() < n_bytes:
            self._free = native.memory(max(n_bytes, PIECE_BYTES))
        place, self._free = self._free[:n_bytes], self._free[n_bytes + -n_bytes % LINE_BYTES :]
        place.copy_(panels.memory)
        return replace(panels, memory=place)


def pack(weight: Tensor | Quantized, bias: Tensor | None, dtype: torch.dtype) -> Panels:
    """Lay a map out.

    Args:
        weight: [d_out, d_in]; d_in divides by 32.
        bias: [d_out] or None.
        dtype: Of the panels where the weight is no whole numbers: fp32 or bf16.
    """
    d_out, d_in = (weight.codes if isinstance(weight, Quantized) else weight).shape
    assert d_in % GROUP == 0
    padded = torch.zeros(d_out + -d_out % WIDE)
    if bias is not None:
        padded[:d_out] = bias.detach().float()
    if isinstance(weight, Quantized):
        return Panels(_whole(weight), padded, d_in, d_out, f"int{weight.bits}")
    together = 2 if dtype == torch.bfloat16 else 1
    rows = _panels(weight.detach().to(dtype)).unflatten(2, (-1, together))  # [P, 32, d_in / t, t]
    memory = rows.transpose(1, 2).contiguous().view(torch.uint8).flatten()
    return Panels(memory, padded, d_in, d_out, "bf16" if together == 2 else "fp32")


def multiply(x: Tensor, panels: Panels, *, gelu: bool) -> Tensor:
    """x Wᵀ + b, and the exact GELU behind it where it is wanted: [..., d_in] → [..., d_out].

    Args:
        x: fp32 or bf16; the result is of the same.
        panels: W and b.
        gelu: Whether a GELU follows.
    """
    found = native.library("panels")
    assert found is not None
    rows = x.reshape(-1, panels.d_in)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = rows.new_empty(len(rows), panels.d_out)
    if len(rows):
        laid, threads = ctypes.byref(panels.map), torch.get_num_threads()
        memory = torch.empty(found.panels_room(laid, ctypes.c_int64(len(rows))), dtype=torch.uint8)
        numbers = (rows, rows.stride(0), len(rows), int(gelu), threads, memory, out)
        run = found.panels_bf16 if x.dtype == torch.bfloat16 else found.panels_fp32
        run(laid, *native.arguments(*numbers))
    return out.view(*x.shape[:-1], panels.d_out)


def _whole(weight: Quantized) -> Tensor:
    """Codes and scales of whole numbers, group by group."""
    codes = _panels(weight.codes.to(torch.int16)).unflatten(2, (-1, GROUP))  # [P, 32, G, 32]
    if weight.bits == 8:
        parts = (codes + 128).to(torch.uint8).unflatten(3, (8, 4))  # [P, 32, G, 8, 4]
    else:
        halves = (codes + 8).to(torch.uint8).unflatten(3, (4, 2, 4))
        parts = halves[:, :, :, :, 0] | (halves[:, :, :, :, 1] << 4)  # [P, 32, G, 4, 4]
    laid = parts.permute(0, 2, 3, 1, 4).flatten(2)  # [P, G, bytes]
    scales = _panels(weight.scales).transpose(1, 2).contiguous()  # [P, G, 32]
    return torch.cat((laid, scales.view(torch.uint8)), 2).flatten()


def _panels(rows: Tensor) -> Tensor:
    """[d_out, n] → [P, 32, n], with zeros up to a whole panel."""
    return F.pad(rows, (0, 0, 0, -len(rows) % WIDE)).unflatten(0, (-1, WIDE))
