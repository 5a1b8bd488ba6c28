"""LoRA changes as `decoder.cpp` reads them: beside its maps, in the pass that reads all layers.

A [r, D_in] of the maps that share an input stand below each other. B [D_out, r] is cut into panels
of 32 results like the weights that it stands beside, and of each panel only the ranks that reach it
are kept: of the map to queries, keys and values, each third has its own. Numbers are fp32 beside
fp32 weights, else bf16; α / r is multiplied into B.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn.adapters import Pairs, shape_of
from inkstone.nn.compiled_decoder import CompiledDecoder, CompiledPages, LayerParts
from inkstone.nn.linear import Linear
from inkstone.nn.lora import Pair, maps
from inkstone.nn.panels import WIDE

RANKS = 8  # whole blocks of them are computed


class _Change(ctypes.Structure):
    _fields_ = (
        ("a", ctypes.c_void_p), ("b", ctypes.c_void_p), ("spans", ctypes.c_void_p),
        ("rank", ctypes.c_int64),
    )  # fmt: skip


class _Adapters(ctypes.Structure):
    _fields_ = (
        ("changes", ctypes.c_void_p), ("narrow", ctypes.c_int64), ("width", ctypes.c_int64),
        ("rows", ctypes.c_void_p),
    )  # fmt: skip


class Changes:
    """Adapters of one model.

    Args:
        reader: Of the model without them.
        adapters: Each checked (`adapters.check`).
    """

    def __init__(self, reader: CompiledDecoder, adapters: Sequence[Pairs]) -> None:
        self._dtype = torch.float32 if reader.format == "fp32" else torch.bfloat16
        self._kept: list[Tensor] = []  # memory that the structures point to
        names = {id(linear): name for name, linear in maps(reader.model).items()}
        found: list[_Change] = []
        width = 0
        for pairs in adapters:
            for layer in reader.model.parts().layers:
                inputs = [
                    self._change([(m, pairs.get(names[id(m)])) for m in group])
                    for group in _groups(layer)
                ]
                qkv, o, gate, up, down = (change.rank for change in inputs)
                width = max(width, qkv, o, gate + up, down)
                found += inputs
        self._table = (_Change * len(found))(*found)
        narrow = int(self._dtype == torch.bfloat16)
        self._adapters = _Adapters(ctypes.addressof(self._table), narrow, width, None)

    def for_rows(self, rows: Tensor | None) -> ctypes._Pointer[_Adapters] | None:
        """What the library is given: rows [N] int64 of adapters from 1, 0 for none; lives until it
        is asked again."""
        if rows is None:
            return None
        self._rows = rows.contiguous()
        self._adapters.rows = self._rows.data_ptr()
        return ctypes.pointer(self._adapters)

    def _change(self, group: Sequence[tuple[Linear, Pair | None]]) -> _Change:
        """The change of maps that stand below each other."""
        lows, ups, first, rank = [], [], 0, 0
        for linear, pair in group:
            d_out, _ = shape_of(linear)
            if pair is not None:
                lows.append(pair.a)
                ups.append((first, rank, pair.b * pair.scale))
                rank += len(pair.a)
            first += d_out
        if not lows:
            return _Change()
        b = torch.zeros(first + -first % WIDE, rank)
        for top, left, part in ups:
            b[top : top + len(part), left : left + part.shape[1]] = part
        panels, spans, begin = [], [], 0
        for panel in b.split(WIDE):
            reached = panel.any(0).nonzero()[:, 0].tolist()
            low, high = (reached[0], reached[-1] + 1) if reached else (0, 0)
            panels.append(panel[:, low:high].T.flatten())
            spans.append([low, high - low, begin])
            begin += panels[-1].numel()
        a = F.pad(torch.cat(lows), (0, 0, 0, -rank % RANKS))
        kept = [a.to(self._dtype).contiguous(), torch.cat(panels).to(self._dtype),
                torch.tensor(spans)]  # fmt: skip
        self._kept += kept
        return _Change(*(x.data_ptr() for x in kept), len(a))


def _groups(layer: LayerParts) -> tuple[Sequence[Linear], ...]:
    """Maps of one input, in the order of `decoder.cpp`."""
    gate = () if layer.gate is None else (layer.gate,)
    return layer.qkv, (layer.o,), gate, (layer.up,), (layer.down,)


class AdaptedDecoder:
    """What an engine needs of a model some of whose texts are read with adapters.

    Args:
        reader: Of the model without them.
        adapters: By the number, from 1, that a layout gives.
    """

    def __init__(self, reader: CompiledDecoder, adapters: Sequence[Pairs]) -> None:
        self._reader, self._changes = reader, Changes(reader, adapters)
        self.new_pages, self.logits = reader.new_pages, reader.logits
        self.token_bytes = reader.token_bytes

    def hidden(self, input_ids: Tensor, *, cache: CompiledPages) -> Tensor:
        """As of `CompiledDecoder`."""
        return self._reader.hidden(input_ids, cache=cache, changes=self._changes)
