"""Weights of a network as compiled code takes them, and where a network keeps what reads for it."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from inkstone.device import memory
from inkstone.nn.panels import Map, Panels, Shelf, pack
from inkstone.nn.quantized import Quantized, quantize
from inkstone.nn.quantized_layers import integers_of, quantized_of

BITS = {"int8": 8, "int4": 4}
KEPT = "_reader"  # where a network keeps what reads for it
R = TypeVar("R")


class Norm(ctypes.Structure):
    """A norm as the C++ sources take it."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p))


class Weights:
    """Norms and maps of one network, laid out anew.

    Args:
        model: Tells the format by its compute dtype.
        format: "fp32", "bf16", "int8" or "int4", for what is not in whole numbers already; None:
            the model's compute dtype.
        like: A map of the network; where its weight is whole numbers, so are all others.
    """

    def __init__(self, model: Any, format: str | None, like: Any) -> None:
        # floats of 8 bits: 16 hold them exactly up to their scale; 32 would take twice the memory
        float8 = quantized_of(like) is not None and integers_of(like) is None
        narrow = float8 or model.compute_dtype == torch.bfloat16
        self.format = format or ("bf16" if narrow else "fp32")
        self.whole = self.format in BITS or integers_of(like) is not None
        exact = self.format == "fp32" and not self.whole
        self.cache_dtype = torch.float32 if exact else torch.float16
        self._shelf = Shelf()
        self._kept: list[Any] = []  # memory that the structures point to
        self._memory = torch.empty(0, dtype=torch.uint8)
        self.lock = threading.Lock()  # of whoever works in this memory

    @property
    def n_bytes(self) -> int:
        """Of the weights as they are laid out."""
        return sum(k.memory.numel() for k in self._kept if isinstance(k, Panels))

    def room(self, n_bytes: int) -> Tensor:
        """Memory to work in, [n_bytes or more] uint8, for whoever has the lock."""
        if self._memory.numel() < n_bytes:
            self._memory = torch.empty(n_bytes, dtype=torch.uint8)
        return self._memory

    def norm(self, norm: Any) -> Norm:
        """None is a norm without a weight."""
        bias = getattr(norm, "bias", None)
        if norm is None:
            return Norm()
        return Norm(self._numbers(norm.weight), None if bias is None else self._numbers(bias))

    def maps(self, modules: Sequence[Any]) -> Map:
        """Maps of one input, or a table of words, below each other."""
        return self.panels(modules).map

    def panels(self, modules: Sequence[Any], bias: Tensor | None = None) -> Panels:
        """The same, with a bias of their own where `bias` is none."""
        biases = [m.bias.detach().float() for m in modules if getattr(m, "bias", None) is not None]
        if bias is None and biases:
            bias = torch.cat(biases)
        whole = [q for q in map(integers_of, modules) if q is not None]
        if whole:
            weight: Tensor | Quantized = Quantized.below_each_other(whole)
        else:
            weight = torch.cat([m.weight.detach() for m in modules])
            if self.format in BITS:
                weight = quantize(weight, BITS[self.format])
        dtype = torch.float32 if self.format == "fp32" else torch.bfloat16
        panels = self._shelf.put(pack(weight, bias, dtype))
        self._kept.append(panels)
        return panels

    def _numbers(self, x: Tensor) -> int:
        kept = x.detach().float().contiguous().clone()
        self._kept.append(kept)
        return kept.data_ptr()


def alike(maps: Sequence[Any]) -> bool:
    """Whether maps are all of one kind; a part of a pass is laid out for all."""
    return len({getattr(integers_of(m), "bits", None) for m in maps}) == 1


def kept(model: Any, make: Callable[[Any], R]) -> R | None:
    """What reads for a model, `make(model)`, kept until its weights change.

    None where the weights, laid out anew, would take more than half of the memory that is free, or
    where no one could tell that they have changed.
    """
    tensors = list(model.state_dict(keep_vars=True).values())
    if any(t.is_inference() for t in tensors):  # has no version
        return None
    made_of = (model.compute_dtype, *((t.data_ptr(), t._version) for t in tensors))
    found: _Kept | None = getattr(model, KEPT, None)
    if found is not None and found.made_of == made_of:
        return found.reader  # type: ignore[no-any-return]
    if 2 * sum(t.numel() * t.element_size() for t in tensors) > memory(model.device)[1]:
        return None
    made = make(model)
    model.__dict__[KEPT] = _Kept(made_of, made)  # not a part of the network
    return made


class _Kept:
    """A reader and what it was made of; a copy of the network has none yet."""

    def __init__(self, made_of: Any = None, reader: Any = None) -> None:
        self.made_of, self.reader = made_of, reader

    def __deepcopy__(self, memo: Any) -> _Kept:
        return _Kept()

    def __reduce__(self) -> tuple[type[_Kept], tuple[()]]:
        return _Kept, ()


def forget(model: Any) -> None:
    """Give the memory back that reading has cost."""
    model.__dict__.pop(KEPT, None)
