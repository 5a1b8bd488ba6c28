"""Maps and tables whose weights are whole numbers or floats of 8 bits, in place of `linear.py`'s.

On a CPU with instructions for it a map multiplies whole numbers as they are (`panels.cpp`);
elsewhere weights are made wide floats anew each time, which is slow and right.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inkstone.nn import native, panels
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.panels import Panels
from inkstone.nn.quantized import Quantized

DTYPES = (torch.float32, torch.bfloat16)


class QuantizedLinear(Linear):
    """A map whose weight is in few bits. Whoever reads `weight` gets what they stand for, made
    anew each time; compiled code takes the numbers as they are. It never learns.

    Args:
        quantized: The weight.
        like: The map that it stands for.
    """

    def __init__(self, quantized: Quantized, like: Linear) -> None:
        nn.Module.__init__(self)
        self.maps, self.bits, self.bias = like.maps, quantized.bits, like.bias
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", quantized.scales)
        self._kept: tuple[tuple[int, ...], Panels] | None = None

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[d_out, d_in] fp32."""
        return quantized_of(self).dequantize()  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_in] → [..., d_out]."""
        y = self.compiled(x, (self,))
        return super().forward(x) if y is None else y

    def compiled(
        self, x: Tensor, linears: Sequence[Linear], *, gelu: bool = False
    ) -> Tensor | None:
        """Inputs are rounded to 8 bits on their way, each group of 32 by its largest."""
        whole = [integers_of(m) for m in linears]
        alike = all(q is not None and q.bits == self.bits for q in whole)
        here = x.device.type == "cpu" and x.dtype in DTYPES
        here = here and native.library("panels") is not None
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not (alike and here):
            return None
        return panels.multiply(x, self._laid_out(linears), gelu=gelu)

    def _laid_out(self, linears: Sequence[Linear]) -> Panels:
        """Maps below each other, kept."""
        made_of = tuple(m.get_buffer("codes").data_ptr() for m in linears)
        if self._kept is None or self._kept[0] != made_of:
            whole = [q for q in map(integers_of, linears) if q is not None]
            biases = [m.bias.detach() for m in linears if m.bias is not None]
            bias = torch.cat(biases) if biases else None
            weight = Quantized.below_each_other(whole)
            self._kept = made_of, panels.pack(weight, bias, torch.float32)
        return self._kept[1]


class QuantizedEmbedding(Embedding):
    """A table whose rows are in few bits; as `QuantizedLinear`."""

    def __init__(self, quantized: Quantized) -> None:
        nn.Module.__init__(self)
        self.bits, self.pending = quantized.bits, None
        self.register_buffer("codes", quantized.codes)
        self.register_buffer("scales", quantized.scales)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[n_rows, d_model] fp32."""
        return quantized_of(self).dequantize()  # type: ignore[union-attr]

    def forward(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """[...] int64 → [..., d_model] in `dtype`."""
        codes, scales = self.get_buffer("codes"), self.get_buffer("scales")
        rows = Quantized(codes[ids.flatten()], scales[ids.flatten()], self.bits).dequantize()
        return rows.view(*ids.shape, -1).to(dtype)


def quantized_of(module: Any) -> Quantized | None:
    """The few bits of a map or a table; None where it has a plain weight."""
    if not isinstance(module, QuantizedLinear | QuantizedEmbedding):
        return None
    return Quantized(module.get_buffer("codes"), module.get_buffer("scales"), module.bits)


def integers_of(module: Any) -> Quantized | None:
    """The whole numbers of a map or a table, which compiled code takes as they are."""
    found = quantized_of(module)
    return None if found is None or found.floats else found


def n_weights(network: nn.Module) -> int:
    """How many numbers a network has learned, in whatever form."""
    whole = (quantized_of(module) for module in network.modules())
    codes = sum(q.codes.numel() for q in whole if q is not None)
    return codes + sum(p.numel() for p in network.parameters())


def put(network: nn.Module, name: str, quantized: Quantized) -> None:
    """Give a map or a table of a network, by name, a weight of few bits."""
    module = network.get_submodule(name)
    if isinstance(module, Embedding):
        network.set_submodule(name, QuantizedEmbedding(quantized))
    else:
        assert isinstance(module, Linear)
        network.set_submodule(name, QuantizedLinear(quantized, module))
