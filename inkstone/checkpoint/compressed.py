"""Weights in few bits on disk, in two formats of compressed-tensors; config.json says which under
`quantization_config`.

"pack-quantized", of whole numbers: for each map `name.weight` there are `name.weight_packed`, int32
that hold eight codes of 4 bits or four of 8 from the low end up (each with half of their range
added), `name.weight_scale` [d_out, d_in / 32], and `name.weight_shape`. "float-quantized":
`name.weight` is of float8 (E4M3) itself, beside `name.weight_scale` [d_out, 1].
https://github.com/vllm-project/compressed-tensors
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inkstone.checkpoint.tensors import Entry, read_tensor
from inkstone.errors import CheckpointError, ModelError
from inkstone.nn.quantized import BITS, FLOAT8, GROUP, Quantized

METHOD, PACKED, FLOATS = "compressed-tensors", "pack-quantized", "float-quantized"
PARTS = ("packed", "scale", "shape")
SCALES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True, slots=True)
class QuantizedEntry(Entry):
    """A weight in few bits, which several tensors hold."""

    def read(self, name: str) -> Quantized:
        """Codes and scales.

        Raises:
            CheckpointError: They cannot be read, do not fit each other or are no numbers.
        """
        raise AssertionError("each format has its own")


@dataclass(frozen=True, slots=True)
class Float8Entry(QuantizedEntry):
    """A weight in floats of 8 bits.

    Attributes:
        codes: They.
        scale: Of each row.
    """

    codes: Entry
    scale: Entry

    def read(self, name: str) -> Quantized:
        codes, scales = read_tensor(name, self.codes), read_tensor(f"{name}_scale", self.scale)
        scales = scales.float()
        if bool(torch.isnan(codes).any()) or not bool(torch.isfinite(scales).all()):
            raise CheckpointError(f"{self.path}: {name} or its scale holds NaN or infinity")
        return Quantized(codes, scales, 8)


@dataclass(frozen=True, slots=True)
class PackedEntry(QuantizedEntry):
    """A weight in whole numbers.

    Attributes:
        parts: They, by `PARTS`.
        bits: 8 or 4.
    """

    parts: tuple[Entry, Entry, Entry]
    bits: int

    def read(self, name: str) -> Quantized:
        packed, scale, shape = (
            read_tensor(f"{name}_{part}", entry)
            for part, entry in zip(PARTS, self.parts, strict=True)
        )
        if tuple(shape.tolist()) != self.shape:
            raise CheckpointError(
                f"{self.path}: {name}_shape says {shape.tolist()[:4]}, but the codes are "
                f"{list(self.shape)}"
            )
        scales = scale.half()
        if not bool(torch.isfinite(scales).all()):
            raise CheckpointError(f"{self.path}: {name}_scale holds NaN, or more than fp16 holds")
        return Quantized(unpack(packed, self.bits), scales, self.bits)


def tensors(name: str, weight: Quantized) -> dict[str, Tensor]:
    """What stands on disk for a weight `name`."""
    if weight.floats:
        return {name: weight.codes, f"{name}_scale": weight.scales}
    parts = (pack(weight.codes, weight.bits), weight.scales, torch.tensor(weight.codes.shape))
    return {f"{name}_{part}": tensor for part, tensor in zip(PARTS, parts, strict=True)}


def pack(codes: Tensor, bits: int) -> Tensor:
    """[d_out, d_in] int8 → [d_out, d_in · bits / 32] int32."""
    several = 32 // bits
    low = (codes.to(torch.int64) + (1 << (bits - 1))).unflatten(1, (-1, several))
    places = torch.arange(several) * bits
    return (low << places).sum(2).to(torch.int32)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """[d_out, n] int32 → [d_out, n · 32 / bits] int8."""
    places = torch.arange(32 // bits, dtype=torch.int32) * bits
    low = (packed[..., None] >> places) & ((1 << bits) - 1)
    return (low - (1 << (bits - 1))).to(torch.int8).flatten(1)


def gather(entries: dict[str, Entry], config: Mapping[str, Any]) -> None:
    """Put what belongs to one weight under its name, where config.json says that there are some.

    Raises:
        ModelError: Another way of compression is asked for.
        CheckpointError: A part of a weight is missing, or has another shape or kind.
    """
    given = config.get("quantization_config")
    if given is None:
        return
    method, kind = (
        given.get(k) if isinstance(given, dict) else None for k in ("quant_method", "format")
    )
    if method != METHOD or kind not in (PACKED, FLOATS):
        raise ModelError(
            f"config.json: weights are compressed as {str(method)[:50]!r} ({str(kind)[:50]!r}); "
            f"known here: {METHOD!r} ({PACKED!r}, {FLOATS!r})",
            fix="use the uncompressed model, and `inkstone compress`",
        )
    gather_them = _gather_packed if kind == PACKED else _gather_floats
    gather_them(entries)


def _gather_packed(entries: dict[str, Entry]) -> None:
    for name in [name for name in entries if name.endswith("_packed")]:
        base = name.removesuffix("_packed")
        try:
            parts = tuple(entries.pop(f"{base}_{part}") for part in PARTS)
        except KeyError as error:
            raise CheckpointError(f"tensor {error.args[0]!r} is missing beside {name!r}") from None
        entries[base] = _entry(base, parts)  # type: ignore[arg-type]


def _gather_floats(entries: dict[str, Entry]) -> None:
    for name, codes in list(entries.items()):
        if codes.dtype != FLOAT8:
            continue
        where, scale = f"{codes.path}: tensor {name!r}", entries.pop(f"{name}_scale", None)
        if scale is None:
            raise CheckpointError(f"tensor '{name}_scale' is missing beside {name!r}")
        if len(codes.shape) != 2 or scale.dtype not in SCALES:
            raise CheckpointError(f"{where}: codes have two dimensions, scales are floats")
        if scale.shape != (codes.shape[0], 1):
            raise CheckpointError(
                f"{where}: scales {list(scale.shape)} are not one for each of {codes.shape[0]} rows"
            )
        entries[name] = Float8Entry(
            codes.path, torch.float16, codes.shape, codes.start, codes.end, codes, scale
        )


def settings(bits: int, table_bits: int | None, *, floats: bool = False) -> dict[str, Any]:
    """`quantization_config` of a model whose maps have so many bits, and its table of words."""
    kinds = {"Linear": bits} | ({"Embedding": table_bits} if table_bits else {})
    form: dict[str, Any] = {"type": "int", "strategy": "group", "group_size": GROUP}
    if floats:
        form = {"type": "float", "strategy": "channel"}
    groups = {
        f"group_{i}": {
            "targets": [target],
            "weights": {"num_bits": n, "symmetric": True, "dynamic": False, **form},
            "input_activations": None, "output_activations": None,
        }
        for i, (target, n) in enumerate(kinds.items())
    }  # fmt: skip
    return {
        "quant_method": METHOD, "format": FLOATS if floats else PACKED,
        "quantization_status": "compressed",
        "config_groups": groups, "ignore": ["lm_head"], "kv_cache_scheme": None,
    }  # fmt: skip


def _entry(name: str, parts: tuple[Entry, Entry, Entry]) -> PackedEntry:
    packed, scale, shape = parts
    where = f"{packed.path}: tensor {name!r}"
    if packed.dtype != torch.int32 or len(packed.shape) != 2 or scale.dtype not in SCALES:
        raise CheckpointError(f"{where}: codes are int32 in two dimensions, scales are floats")
    rows, width = packed.shape
    if shape.dtype not in (torch.int64, torch.int32) or shape.shape != (2,):
        raise CheckpointError(f"{where}: its shape is not told by two whole numbers")
    if len(scale.shape) != 2 or scale.shape[0] != rows:
        raise CheckpointError(f"{where}: scales {list(scale.shape)} do not fit {rows} rows")
    for bits in BITS:
        d_in = width * 32 // bits
        if d_in and scale.shape[1] * GROUP == d_in:
            return PackedEntry(
                packed.path, torch.float16, (rows, d_in), packed.start, packed.end, parts, bits
            )
    raise CheckpointError(
        f"{where}: codes {list(packed.shape)} and scales {list(scale.shape)} are not of 8 or 4 "
        f"bits in groups of {GROUP}"
    )
