"""A causal model that reads with `decoder.cpp`: all its layers in one call, without a graph.

On a processor that multiplies bf16 and bytes in vectors this takes a model through a step as fast
as memory gives its weights. The weights are laid out anew (`panels.py`), in fp32, bf16 or whole
numbers. Elsewhere, and for families of another shape, torch does the work (`fits`).
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inkstone.nn import native
from inkstone.nn.adapters import AdaptedLinear
from inkstone.nn.attention import View
from inkstone.nn.compiled_weights import Norm, Weights, alike, kept
from inkstone.nn.linear import Linear
from inkstone.nn.norms import RMSNorm
from inkstone.nn.paged import PAGE_SIZE, LaidOut, Layout
from inkstone.nn.panels import Map
from inkstone.nn.quantized import GROUP
from inkstone.nn.rope import Rope

if TYPE_CHECKING:
    from inkstone.nn.compiled_adapters import Changes

LANES = 16


@dataclass(frozen=True)
class LayerParts:
    """x + o(attention(norm(x))), then x + mlp(norm(x)): a layer by its parts.

    Attributes:
        attention_norm: Of the input of the first half.
        qkv: Maps to queries, keys and values.
        o: Back to the residual stream.
        mlp_norm: Of the input of the second half.
        up: To d_ff, followed by a GELU (its tanh form) or, with a gate, times silu(gate).
        down: Back.
        gate: As `up`; None where there is none.
        qk_norms: Of every head's queries and keys, or None.
        window: Tokens that a token sees, itself included; None: all.
    """

    attention_norm: nn.Module
    qkv: tuple[Linear, Linear, Linear]
    o: Linear
    mlp_norm: nn.Module
    up: Linear
    down: Linear
    gate: Linear | None = None
    qk_norms: tuple[nn.Module, nn.Module] | None = None
    window: int | None = None


@dataclass(frozen=True)
class StackParts:
    """The layers of a decoder, the norm behind them, and how they know of positions.

    Attributes:
        layers: First to last.
        norm: Behind the last.
        rope: Where queries and keys turn; None where positions are in the embedding.
    """

    layers: tuple[LayerParts, ...]
    norm: nn.Module
    rope: Rope | None = None


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", Norm), ("qkv", Map), ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p), ("o", Map), ("mlp_norm", Norm), ("gate", Map), ("up", Map),
        ("down", Map), ("window", ctypes.c_int64), ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
    )  # fmt: skip


class _Stack(ctypes.Structure):
    _fields_ = (
        ("n_layers", ctypes.c_int64), ("d_model", ctypes.c_int64), ("n_heads", ctypes.c_int64),
        ("n_kv_heads", ctypes.c_int64), ("head_dim", ctypes.c_int64), ("d_ff", ctypes.c_int64),
        ("rms", ctypes.c_int64), ("wide_cache", ctypes.c_int64), ("eps", ctypes.c_float),
        ("cos", ctypes.c_void_p), ("sin", ctypes.c_void_p), ("layers", ctypes.c_void_p),
        ("norm", Norm), ("head", Map),
    )  # fmt: skip


def fits(model: Any) -> bool:
    """Whether this processor and this model are of the kind, and a compiler was here."""
    if not hasattr(model, "parts") or model.device.type != "cpu":
        return False
    if native.library("decoder") is None:
        return False
    c = model.config
    heads = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim
    widths = (c.d_model, c.d_ff, c.n_heads * c.head_dim, heads)
    if any(width % GROUP for width in widths) or c.head_dim % LANES:
        return False
    parts = model.parts()
    if parts is None:
        return False
    layers = [(*p.qkv, p.o, p.up, p.down, p.gate) for p in parts.layers]
    maps = [m for layer in layers for m in layer if m is not None]
    # weights that are shared with others are not laid out once more
    return alike(maps) and not any(isinstance(m, AdaptedLinear) for m in maps)


def reader(model: Any) -> CompiledDecoder | None:
    """What reads for a model, kept until its weights change; None where torch does the work.

    A model that learns has none; else as `compiled_weights.kept`.
    """
    return kept(model, CompiledDecoder) if not model.training and fits(model) else None


class CompiledPages(LaidOut):
    """Keys [pages, K, E, PAGE_SIZE] and values [pages, K, PAGE_SIZE, E] of every layer, in fp32 or
    fp16."""

    page_size = PAGE_SIZE
    rewinds = True

    def __init__(self, config: Any, n_pages: int, dtype: torch.dtype) -> None:
        shape = (config.n_layers, n_pages, config.n_kv_heads * config.head_dim * PAGE_SIZE)
        n_bytes = math.prod(shape) * dtype.itemsize
        self.keys, self.values = (
            native.memory(n_bytes).view(dtype).view(shape) for _ in range(2)
        )  # fmt: skip


class CompiledDecoder:
    """What an engine needs of a model.

    Args:
        model: One that `fits`.
        format: "fp32", "bf16", "int8" or "int4", for what is not in whole numbers already; None:
            the model's compute dtype, and "bf16" where its weights are floats of 8 bits.
    """

    def __init__(self, model: Any, format: str | None = None) -> None:
        self.model, self.config, self.device = model, model.config, model.device
        parts: StackParts = model.parts()
        self._weights = Weights(model, format, parts.layers[0].o)
        self.format, self.whole = self._weights.format, self._weights.whole
        self.cache_dtype = self._weights.cache_dtype
        c = model.config
        self._layers = (_Layer * c.n_layers)(*(self._layer(layer) for layer in parts.layers))
        first = parts.layers[0].attention_norm
        self._rope = parts.rope
        self._stack = _Stack(
            c.n_layers, c.d_model, c.n_heads, c.n_kv_heads, c.head_dim, c.d_ff,
            int(isinstance(first, RMSNorm)), int(self.cache_dtype == torch.float32), first.eps,
            None, None, ctypes.addressof(self._layers), self._weights.norm(parts.norm),
            self._weights.maps([model.embed if model.head is None else model.head]),
        )  # fmt: skip
        self._filled: CompiledPages | None = None

    @property
    def head_weight(self) -> Tensor:
        """[V, D]."""
        weight: Tensor = self.model.head_weight
        return weight

    def eval(self) -> CompiledDecoder:
        """It never learns."""
        return self

    @property
    def weight_bytes(self) -> int:
        """Of the weights as they are laid out."""
        return self._weights.n_bytes

    @property
    def token_bytes(self) -> int:
        """What a cache takes for a token."""
        c = self.config
        return int(2 * c.n_layers * c.n_kv_heads * c.head_dim * self.cache_dtype.itemsize)

    def new_pages(self, n_texts: int, n_tokens: int) -> tuple[CompiledPages, int]:
        """As `Decoder.new_pages`."""
        n_pages = -(-n_tokens // PAGE_SIZE)
        return CompiledPages(self.config, n_pages, self.cache_dtype), n_pages

    def hidden(
        self, input_ids: Tensor, *, cache: CompiledPages, changes: Changes | None = None
    ) -> Tensor:
        """States after the final norm, of the tokens that the cache's layout tells: [1, N] →
        [1, N, D] fp32. Texts that the layout gives adapters are read with these `changes`."""
        library, layout = native.library("decoder"), cache.layout
        assert library is not None
        longest = max(layout.lengths)
        view = View.of(input_ids, max_seq_len=self.config.max_seq_len, cache=cache)
        x = self.model.embed_tokens(input_ids, view, cache)[0].float().contiguous()
        stack, threads = ctypes.byref(self._stack), torch.get_num_threads()
        tables = layout.tables.contiguous()
        starts, counts = torch.tensor(layout.starts), torch.tensor(layout.counts)
        numbers = (len(x), len(starts), tables.shape[1], starts, counts, tables, longest, threads)
        adapters = None if changes is None else changes.for_rows(layout.adapter_rows)
        with self._weights.lock:
            self._point_at(cache, longest)
            sizes = native.arguments(len(x), longest, threads)
            room = self._weights.room(library.decoder_room(stack, *sizes, adapters))
            library.decoder_read(stack, *native.arguments(*numbers, room, x), adapters)
        return x[None]

    def read(self, input_ids: Tensor) -> Tensor:
        """States of whole texts, without a cache that stays: [B, T] → [B, T, D] fp32."""
        n_rows, length = input_ids.shape
        n_pages = -(-length // PAGE_SIZE)
        cache, _ = self.new_pages(n_rows, n_rows * n_pages * PAGE_SIZE)
        tables = torch.arange(n_rows * n_pages).view(n_rows, n_pages).tolist()
        starts, counts = [0] * n_rows, [length] * n_rows
        cache.begin(Layout.of(starts, counts, tables, [()] * n_rows, input_ids.device))
        return self.hidden(input_ids.reshape(1, -1), cache=cache).view(n_rows, length, -1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every word: [C, D] → [C, V] fp32."""
        library = native.library("decoder")
        assert library is not None
        hidden = hidden.contiguous()
        out = hidden.new_empty(len(hidden), self._stack.head.d_out)
        with self._weights.lock:
            memory = self._weights.room(len(hidden) * self.config.d_model * 8 + 256)
            numbers = (hidden, len(hidden), torch.get_num_threads(), memory, out)
            library.decoder_scores(ctypes.byref(self._stack), *native.arguments(*numbers))
        return out

    def _point_at(self, cache: CompiledPages, longest: int) -> None:
        """Let the layers know where keys and values are, and the angles of all positions."""
        if self._filled is not cache:
            for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
                layer.keys, layer.values = keys.data_ptr(), values.data_ptr()
            self._filled = cache
        if self._rope is not None:
            self._rope.tables(torch.zeros(1, dtype=torch.long), longest, torch.float32)  # grow
            self._stack.cos, self._stack.sin = self._rope.cos.data_ptr(), self._rope.sin.data_ptr()

    def _layer(self, layer: LayerParts) -> _Layer:
        w, norms = self._weights, layer.qk_norms or (None, None)
        return _Layer(
            w.norm(layer.attention_norm), w.maps(layer.qkv),
            *(None if n is None else w.norm(n).weight for n in norms), w.maps([layer.o]),
            w.norm(layer.mlp_norm), Map() if layer.gate is None else w.maps([layer.gate]),
            w.maps([layer.up]), w.maps([layer.down]), layer.window or 0, None, None,
        )  # fmt: skip
