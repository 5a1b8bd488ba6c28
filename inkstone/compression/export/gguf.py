"""GGUF: one file with weights, shape and tokenizer, which llama.cpp and its kin read.

Stored like llama.cpp's own converter stores it: vectors, tables of positions and of types, and
routers in fp32; all other matrices in the type that was asked for. A row whose width is no
multiple of 32 cannot be quantized and stays fp16. With `q4_0`, the matrix that scores words (the
head, or the embedding it is tied to) is kept at `q8_0`; llama.cpp takes its `q6_K` there, for which
the library has no writer.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inkstone import __version__, registry
from inkstone.compression.export._base import Source
from inkstone.compression.export._gguf_families import Layout, layout
from inkstone.compression.export._gguf_vocabulary import Vocabulary, talks, vocabulary
from inkstone.config import Progress
from inkstone.errors import ModelError

TYPES = ("f16", "bf16", "q8_0", "q4_0")
FOLDER = False
FILE_TYPES = {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}  # llama.cpp's `llama_ftype`
BLOCK = 32  # weights that share a scale
EXACT = ("position_embd.weight", "token_types.weight", "rope_freqs.weight", "ffn_gate_inp.weight")
SCORED = ("output.weight", "token_embd.weight")
LARGEST_F16 = 65504.0


def write(
    source: Source, target: Path, kind: str, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Write the file, one tensor at a time.

    Raises:
        ModelError: llama.cpp has no such network, or a weight does not fit fp16.
        TokenizerError: It has no such tokenizer.
    """
    gguf = registry.extra("gguf", "export")
    there = layout(source)
    words = vocabulary(source, n_rows=source.model.config.vocab_size, encoder=there.arch == "bert")
    notes = [*there.notes, *words.notes]
    writer = gguf.GGUFWriter(None, there.arch)
    _describe(writer, source, there, words, kind)
    names = {t.name.lower(): t for t in gguf.GGMLQuantizationType}
    stored, odd = Counter[str](), Counter[int]()
    for name, tensor in there.tensors():
        chosen = type_of(name, tuple(tensor.shape), kind, tied=there.tied)
        stored[chosen] += 1
        if kind in ("q8_0", "q4_0") and chosen == "f16":
            odd[tensor.shape[-1]] += 1
        shape = tuple(tensor.shape)
        n_bytes = gguf.quants.quant_shape_to_byte_shape(shape, names[chosen])
        size = int(np.prod(n_bytes))
        writer.add_tensor_info(name, shape, np.dtype(np.float32), size, names[chosen])
    notes += [
        f"{count} matrices stay f16: rows of {width} are no multiple of {BLOCK}"
        for width, count in odd.items()
    ]
    with contextlib.closing(writer):
        writer.write_header_to_file(target)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        total = sum(stored.values())
        for done, (name, tensor) in enumerate(there.tensors(), 1):
            chosen = type_of(name, tuple(tensor.shape), kind, tied=there.tied)
            numbers = _numbers(name, tensor, chosen)
            writer.write_tensor_data(gguf.quants.quantize(numbers, names[chosen]))
            progress(done, total, "tensors")
    facts = {
        "architecture": there.arch,
        "tokenizer": words.model if words.pre == "default" else f"{words.model}, {words.pre}",
        "context": there.keys["context_length"],
        "tensors": dict(stored),
    }
    return facts, notes


def type_of(name: str, shape: tuple[int, ...], kind: str, *, tied: bool) -> str:
    """How a tensor is stored in a file of some type.

    Args:
        name: llama.cpp's.
        shape: Rows last.
        kind: One of `TYPES`.
        tied: Whether the head is the embedding.
    """
    if len(shape) < 2 or name.endswith(EXACT):
        return "f32"
    if kind in ("f16", "bf16"):
        return kind
    if shape[-1] % BLOCK:
        return "f16"
    scores = name == SCORED[0] or (tied and name == SCORED[1])
    return "q8_0" if scores else kind


def _numbers(name: str, tensor: Tensor, kind: str) -> npt.NDArray[np.float32]:
    numbers = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if kind == "f16" and np.abs(numbers).max(initial=0.0) > LARGEST_F16:
        raise ModelError(f"{name} holds numbers beyond fp16", fix="export with --type bf16")
    return numbers


def _describe(writer: Any, source: Source, there: Layout, words: Vocabulary, kind: str) -> None:
    writer.add_type("model")
    writer.add_name(source.name)
    writer.add_string("general.quantized_by" if kind[0] == "q" else "general.description",
                      f"written by Inkstone {__version__}")  # fmt: skip
    licence = source.info.get("license")
    if isinstance(licence, str):
        writer.add_license(licence)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(2)
    for key, value in there.keys.items():
        _put(writer, f"{there.arch}.{key}", value)
    if there.arch == "bert":
        types = source.model.token_type
        writer.add_token_type_count(1 if types is None else len(types.weight))
    writer.add_tokenizer_model(words.model)
    writer.add_tokenizer_pre(words.pre)
    writer.add_token_list(words.tokens)
    writer.add_token_types(words.kinds)
    if words.scores is not None:
        writer.add_token_scores(words.scores)
    if words.merges is not None:
        writer.add_token_merges(words.merges)
    for key, value in words.keys.items():
        _put(writer, f"tokenizer.ggml.{key}", value)
    if there.arch != "bert" and talks(source):
        writer.add_chat_template(source.read_with().chat_template)


def _put(writer: Any, key: str, value: Any) -> None:
    """A value under the type that llama.cpp expects of it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
