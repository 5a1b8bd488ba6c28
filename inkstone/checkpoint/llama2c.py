"""llama2.c's own model files: a header of integers, then every weight in fp32, little endian.

Version 0 has seven int32 and no name: d_model, d_ff, n_layers, n_heads, n_kv_heads, vocab_size
(negative where the head is not the embedding) and max_seq_len. Version 1 begins with "ak42", its
number, the same seven, and a byte that says whether the head is shared, in 256 bytes.
https://github.com/karpathy/llama2.c (export.py)

Its rotary positions turn neighbouring channels, ours turn channel i with channel i + E/2 (as all
Hugging Face folders do), so the rows of q and k are put in another order.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from inkstone.errors import CheckpointError
from inkstone.models import llama

MAGIC = b"24ka"  # 0x616b3432, little endian
HEADER_BYTES = {0: 28, 1: 256}
FIELDS = ("d_model", "d_ff", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Header:
    """What the beginning of a file says: the version of its layout, and the model's shape."""

    version: int
    config: llama.Config


def recognizes(start: bytes) -> bool:
    """Whether a file that begins so may be of this format: its name, or seven plausible sizes."""
    if start.startswith(MAGIC):
        return True
    if len(start) < HEADER_BYTES[0]:
        return False
    sizes = struct.unpack("<7i", start[: HEADER_BYTES[0]])
    return all(0 < abs(size) <= 1 << 22 for size in sizes) and min(sizes[:5]) > 0


def read_header(path: Path) -> Header:
    """The shape of the model, which the size of the file has to bear out; no weight is read.

    Raises:
        CheckpointError: The file is not of this format, or cut off, or asks for what is not known.
    """
    try:
        with path.open("rb") as file:
            start = file.read(HEADER_BYTES[1])
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    header = _parse(start, path)
    expected = HEADER_BYTES[header.version] + 4 * sum(
        math.prod(shape) for _, shape in _layout(header)
    )
    if size != expected:
        raise CheckpointError(
            f"{path} has {size:,} bytes; a model of the shape in its header takes {expected:,}",
            fix="the file is truncated or no llama2.c model; fetch it again",
        )
    return header


def read(path: Path) -> llama.Model:
    """The model, in evaluation mode.

    Raises:
        CheckpointError: As in `read_header`, or a weight is NaN or infinite.
    """
    header = read_header(path)
    c = header.config
    with torch.device("meta"):
        model = llama.Model(c)
    state: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            file.seek(HEADER_BYTES[header.version])
            for name, shape in _layout(header):
                tensor = _take(file, shape, f"{path}: {name or 'the table of positions'}")
                if name.endswith((".q.weight", ".k.weight")):
                    tensor = _halves(tensor, c.head_dim)
                if name:
                    state[name] = tensor
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


def _parse(start: bytes, path: Path) -> Header:
    version = 0
    body = start
    if start.startswith(MAGIC):
        version = int.from_bytes(start[4:8], "little", signed=True)
        body = start[8:]
    if version == 2:
        raise CheckpointError(
            f"{path} holds int8 weights (version 2 of llama2.c's format)",
            fix="export the model as version 0 or 1, which keep every digit",
        )
    if version not in HEADER_BYTES:
        raise CheckpointError(f"{path}: version {version} of llama2.c's format is not known")
    if len(start) < HEADER_BYTES[version]:
        raise CheckpointError(f"{path}: the header is cut off after {len(start)} bytes")
    shape = dict(zip(FIELDS, struct.unpack("<7i", body[:28]), strict=True))
    tied = bool(body[28]) if version else shape["vocab_size"] > 0
    if not version:
        shape["vocab_size"] = abs(shape["vocab_size"])
    for name, value in shape.items():
        if value < 1:
            raise CheckpointError(f"{path}: {name} is {value}")
    try:
        return Header(version, llama.Config(**shape, tied_head=tied))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "shape"
        raise CheckpointError(f"{path}: {where}: {first['msg']}") from error


def _layout(header: Header) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Our name and the shape of every tensor in the order of the file; "" for what is not read."""
    c = header.config
    kv = c.n_kv_heads * c.head_dim
    blocks: dict[str, tuple[int, ...]] = {
        "attention_norm": (c.d_model,), "q": (c.d_model, c.d_model), "k": (kv, c.d_model),
        "v": (kv, c.d_model), "o": (c.d_model, c.d_model), "mlp_norm": (c.d_model,),
        "gate": (c.d_ff, c.d_model), "down": (c.d_model, c.d_ff), "up": (c.d_ff, c.d_model),
    }  # fmt: skip
    table = ("embed.weight", (c.vocab_size, c.d_model))
    norm = ("norm.weight", (c.d_model,))
    if header.version:
        first = ["attention_norm", "mlp_norm"]
        blocks = {name: blocks[name] for name in [*first, *(b for b in blocks if b not in first)]}
    if not header.version:
        yield table
    for name, shape in blocks.items():
        for layer in range(c.n_layers):
            yield f"blocks.{layer}.{name}.weight", shape
        if header.version and name == "mlp_norm":
            yield from (norm, table)
    if not header.version:
        yield norm
        yield "", (2, c.max_seq_len, c.head_dim // 2)
    if not c.tied_head:
        yield "head.weight", table[1]


def _take(file: BinaryIO, shape: tuple[int, ...], where: str) -> Tensor:
    count = math.prod(shape)
    values = np.fromfile(file, "<f4", count)
    if len(values) != count:
        raise CheckpointError(f"{where} is cut off")
    if not np.isfinite(values).all():
        raise CheckpointError(f"{where} holds NaN or infinity")
    return torch.from_numpy(values.astype(np.float32, copy=False)).view(shape)


def _halves(weight: Tensor, head_dim: int) -> Tensor:
    """[H·E, D], rows of a head in pairs → the first of every pair, then the second."""
    pairs = weight.view(-1, head_dim // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)
