"""Tensors on disk: the safetensors format, read as if every file were hostile.

A file is eight bytes of header length (little endian), a JSON header that gives each tensor's
dtype, shape and byte range, and the bytes. Everything is checked before anything is allocated;
the ranges must tile the data without holes, overlaps or trailing bytes.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from inkstone.errors import CheckpointError
from inkstone.files import parse_json

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
_CODES = {dtype: code for code, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_DISGUISES = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes it"),
    (b"\x80", "a Python pickle"),
    (b"version https://git-lfs", "a Git LFS pointer; the weights themselves were not downloaded"),
    (b"<", "an HTML page, probably an error page saved by a download"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: byte range [start, end) counted from the beginning of the file."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors that a file says it holds, in the order of their bytes; none is read.

    Raises:
        CheckpointError: The file is not a well-formed safetensors file; the message says where.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(64)
            length = int.from_bytes(start[:8], "little")
            for magic, what in _DISGUISES:
                if start.startswith(magic) and not start[8:9] == b"{":
                    raise CheckpointError(f"{path} is {what}, not a safetensors file")
            if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
                raise CheckpointError(
                    f"{path}: the header claims {length} bytes; the file has {size}",
                    fix="the file is truncated or no safetensors file; fetch it again",
                )
            file.seek(8)
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if len(raw) != length:
        raise CheckpointError(f"{path}: the header is cut off")
    header = parse_json(raw, f"{path} (header)")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ is not a table of strings")
    base = 8 + length
    entries = {name: _entry(path, name, value, base) for name, value in header.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)))
    end = base
    for name, entry in ordered.items():
        if entry.start != end:
            kind = "a hole" if entry.start > end else "an overlap"
            raise CheckpointError(f"{path}: {kind} in the data before tensor {name!r}")
        end = entry.end
    if end != size:
        raise CheckpointError(
            f"{path}: the tensors take {end} bytes and the file has {size}",
            fix="the file is truncated or was appended to; fetch it again",
        )
    return ordered


def read_tensor(name: str, entry: Entry) -> Tensor:
    """Read the bytes of one tensor.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    try:
        with entry.path.open("rb") as file:
            file.seek(entry.start)
            _fill(file, tensor)
    except (OSError, EOFError) as error:
        raise CheckpointError(f"{entry.path}: tensor {name!r} cannot be read: {error}") from error
    return tensor


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of one file; errors as in `read_header`."""
    return {name: read_tensor(name, entry) for name, entry in read_header(path).items()}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors in the order of the reference implementation: wide dtypes first, then by name.

    Only one of them is held as a copy at a time (when it lies on a GPU or is not contiguous).

    Raises:
        OSError: The disk is full or failing.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)  # so that the data is aligned
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little"))
        file.write(raw)
        for name in names:
            file.write(_bytes(tensors[name].detach().cpu().contiguous()))


def _entry(path: Path, name: str, value: object, base: int) -> Entry:
    where = f"{path}: tensor {name[:200]!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: the header entry needs dtype, shape and data_offsets")
    code, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointError(f"{where}: dtype {str(code)[:50]!r} is not one of {list(DTYPES)}")
    if not _are_sizes(shape):
        raise CheckpointError(f"{where}: its shape is not a list of sizes below 2^63")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: its data_offsets are not a range")
    dtype = DTYPES[code]
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise CheckpointError(f"{where}: shape {shape} of {code} does not fit its byte range")
    return Entry(path, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _are_sizes(value: object) -> bool:
    """A short list of whole numbers in [0, 2⁶³); JSON's true and false are not numbers."""
    return (
        isinstance(value, list)
        and len(value) <= 16
        and all(type(x) is int and 0 <= x < 1 << 63 for x in value)
    )


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor, as bytes."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _fill(file: BinaryIO, tensor: Tensor) -> None:
    if not tensor.numel():
        return
    view = _bytes(tensor)
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise EOFError("the file ends early")
        view = view[count:]
