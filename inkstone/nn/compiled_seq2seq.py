"""An encoder–decoder that reads and writes with `seq2seq.cpp`: all layers of a side in one call.

As `compiled_decoder.py` for causal models. Many texts are written side by side, each in several
beams. Keys and values of what is written live in pages. Every beam has pages of its own, two for
every sixteen tokens: a beam that goes on from another one shares that one's full pages, which
nobody writes into any more, and copies the page that is being filled into the one of its two that
it does not fill. Memory for pages is taken once and used by one batch after the other.
Shapes: B texts, W beams, R = B · W rows, S source time, N source tokens without padding, D d_model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inkstone.nn import native, panels
from inkstone.nn.compiled_weights import Norm, Weights, alike, kept
from inkstone.nn.linear import Linear
from inkstone.nn.paged import PAGE_SIZE
from inkstone.nn.panels import Map
from inkstone.nn.quantized import GROUP
from inkstone.nn.top import top_of_map

LANES = 16
ACTIVATIONS = ("relu", "gelu", "swish")
SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class LayerParts:
    """A layer by its parts: attention, attention over the memory, feed-forward.

    Attributes:
        attention_norm: Before or behind the first part.
        qkv: Maps to queries, keys and values.
        o: Back to the residual stream.
        mlp_norm: Before or behind the last part.
        up: To d_ff.
        down: Back.
        cross_norm: Before or behind the second part; None in an encoder, as all that follow.
        cross_q: To queries.
        cross_kv: From the memory to keys and values.
        cross_o: Back to the residual stream.
    """

    attention_norm: nn.Module
    qkv: tuple[Linear, Linear, Linear]
    o: Linear
    mlp_norm: nn.Module
    up: Linear
    down: Linear
    cross_norm: nn.Module | None = None
    cross_q: Linear | None = None
    cross_kv: tuple[Linear, Linear] | None = None
    cross_o: Linear | None = None

    @property
    def maps(self) -> tuple[Linear, ...]:
        """All of them."""
        cross = (self.cross_q, *(self.cross_kv or ()), self.cross_o)
        return (*self.qkv, self.o, self.up, self.down, *(m for m in cross if m is not None))


@dataclass(frozen=True)
class SideParts:
    """An encoder or a decoder.

    Attributes:
        layers: First to last.
        norm: Behind the last; None where there is none.
        pre_norm: Whether norms stand before the parts of a layer, or behind them.
        activation: Of the feed-forward part: "relu", "gelu" or "swish".
    """

    layers: tuple[LayerParts, ...]
    norm: nn.Module | None
    pre_norm: bool
    activation: str


class _Layer(ctypes.Structure):
    _fields_ = (
        ("attention_norm", Norm), ("qkv", Map), ("o", Map), ("cross_norm", Norm), ("cross_q", Map),
        ("cross_kv", Map), ("cross_o", Map), ("mlp_norm", Norm), ("up", Map), ("down", Map),
        ("keys", ctypes.c_void_p), ("values", ctypes.c_void_p), ("memory_keys", ctypes.c_void_p),
        ("memory_values", ctypes.c_void_p),
    )  # fmt: skip


class _Stack(ctypes.Structure):
    _fields_ = (
        ("n_layers", ctypes.c_int64), ("d_model", ctypes.c_int64), ("n_heads", ctypes.c_int64),
        ("head_dim", ctypes.c_int64), ("d_ff", ctypes.c_int64), ("pre_norm", ctypes.c_int64),
        ("causal", ctypes.c_int64), ("activation", ctypes.c_int64), ("wide_cache", ctypes.c_int64),
        ("eps", ctypes.c_float), ("layers", ctypes.c_void_p), ("norm", Norm),
    )  # fmt: skip


def fits(model: Any) -> bool:
    """Whether this processor and this model are of the kind, and a compiler was here."""
    if not hasattr(model, "side_parts") or model.device.type != "cpu":
        return False
    if any(native.library(name) is None for name in ("seq2seq", "panels")):
        return False
    c = model.config
    if c.d_model % GROUP or c.d_ff % GROUP or c.head_dim % 4:
        return False
    sides = [model.side_parts(name) for name in SIDES]
    if None in sides:
        return False
    return alike([m for side in sides for layer in side.layers for m in layer.maps])


def reader(model: Any) -> CompiledSeq2Seq | None:
    """What reads for a model, kept until its weights change; None where torch does the work.

    A model that learns has none; else as `compiled_weights.kept`.
    """
    return kept(model, CompiledSeq2Seq) if not model.training and fits(model) else None


class CompiledSeq2Seq:
    """The two sides of a model.

    Args:
        model: One that `fits`.
        format: As of `compiled_weights.Weights`.
    """

    def __init__(self, model: Any, format: str | None = None) -> None:
        self.model = model
        encoder, decoder = (model.side_parts(name) for name in SIDES)
        self.weights = Weights(model, format, encoder.layers[0].o)
        self._encoder, self._decoder = _Side(self, encoder), _Side(self, decoder)
        self.head = self.weights.panels([model.embed], model.head_bias)
        self.spare: list[list[Tensor]] = []  # memory that no batch uses

    @property
    def weight_bytes(self) -> int:
        """Of the weights as they are laid out."""
        return self.weights.n_bytes

    def begin(self, source_ids: Tensor, mask: Tensor | None, n_beams: int, most: int) -> Writing:
        """Read sources, to write texts.

        Args:
            source_ids: [B, S].
            mask: [B, S], True (or 1) at tokens; None: all are.
            n_beams: W, beams of a text.
            most: Tokens of a text.

        Raises:
            ModelError: A source is longer than the model's context.
        """
        self.model.check_length(source_ids)
        if mask is None:
            lengths = [source_ids.shape[1]] * len(source_ids)
            ids, positions = source_ids.flatten(), torch.arange(lengths[0]).repeat(len(lengths))
        else:
            real = mask.bool()
            lengths = real.sum(1).tolist()
            ids, positions = source_ids[real], (real.cumsum(1) - 1)[real]
        tables, n_pages = _pages_of(lengths)
        places = self.model.places("encoder", positions)
        x = self.model.embed_side("encoder", ids, places).float().contiguous()
        n_layers, n_lanes = self.model.config.n_decoder_layers, len(lengths) * n_beams
        held = _Pages(self, n_layers, n_pages, 2 * -(-most // PAGE_SIZE) * n_lanes)
        self._encoder.read(held, x, [0] * len(lengths), lengths, tables, max(lengths))
        self._decoder.remember(held, x, lengths, tables)
        places = self.model.places("decoder", torch.arange(most))
        return Writing(self, self._decoder, torch.tensor(lengths), tables, held, places, n_beams)

    def scores(self, hidden: Tensor) -> Tensor:
        """Of every word: [R, D] → [R, V] fp32."""
        return panels.multiply(hidden, self.head, gelu=False)

    def top(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best words of each row, as `nn.top.top`."""
        return top_of_map(hidden, self.head, k)


class Writing:
    """Texts that are being written, in W beams each.

    Args:
        reader: Whose they are.
        side: The decoder.
        lengths: [B], tokens of the memories.
        tables: [B, ·], their pages.
        pages: Of the memories, filled, and of what is written.
        places: [·, D], what the positions to come add to words.
        n_beams: W.
    """

    def __init__(
        self, reader: CompiledSeq2Seq, side: _Side, lengths: Tensor, tables: Tensor, pages: _Pages,
        places: Tensor, n_beams: int,
    ) -> None:  # fmt: skip
        self._reader, self._side, self._width = reader, side, n_beams
        self._lengths, self._memory_tables, self._pages = lengths, tables, pages
        self._places = places
        self._n_lanes = len(lengths) * n_beams
        self._lanes = torch.arange(self._n_lanes)  # [R]: whose pages a row writes into
        self._second = torch.zeros(self._n_lanes, dtype=torch.long)  # which one of its two it fills
        self._tables = torch.zeros(self._n_lanes, 0, dtype=torch.long)
        self._copies = torch.zeros(2, 0, dtype=torch.long)
        self._position = 0

    def step(self, new: Tensor) -> Tensor:
        """Read the newest token of every row, [R, 1]: states that words are scored from, [R, D]."""
        position, model = self._position, self._reader.model
        page = position // PAGE_SIZE
        if page == self._tables.shape[1]:
            own = self._own(self._lanes)
            self._tables = torch.cat((self._tables, own[:, None]), 1)
        ids = new[:, 0]
        x = model.embed_side("decoder", ids, self._places[position]).float().contiguous()
        beams = (self._width, self._memory_tables.shape[1], self._lengths, self._memory_tables)
        longest = max(position + 1, int(self._lengths.max()))
        n = len(ids)
        rows = ([position] * n, [1] * n, self._tables, longest)
        self._side.read(self._pages, x, *rows, beams, self._copies)
        self._copies = self._copies[:, :0]
        self._position += 1
        return x

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was; rows of one text stay together, texts may go."""
        width = self._width
        texts = rows[::width] // width
        self._lengths, self._memory_tables = self._lengths[texts], self._memory_tables[texts]
        self._tables = self._tables[rows]
        lanes = self._lanes[rows].view(-1, width)
        if self._position % PAGE_SIZE == 0:  # full pages are only read
            self._lanes = (lanes // width * width + torch.arange(width)).flatten()
            return
        # the first row that goes on from a beam stays in its lane, others take those that are left
        again = (lanes[:, :, None] == lanes[:, None]).tril(-1).any(2)
        taken = torch.zeros_like(again).scatter_(1, lanes % width, True)
        left = (
            taken.byte().argsort(dim=1, stable=True).gather(1, (again.cumsum(1) - 1).clamp_min(0))
        )
        self._lanes = torch.where(again, lanes // width * width + left, lanes).flatten()
        moved = again.flatten().nonzero()[:, 0]
        self._second[self._lanes[moved]] ^= 1
        to = self._own(self._lanes[moved])
        self._copies = torch.stack((self._tables[moved, -1], to))
        self._tables[moved, -1] = to

    def _own(self, lanes: Tensor) -> Tensor:
        """The page that lanes fill."""
        last = (self._tables.shape[1] - (self._position % PAGE_SIZE > 0)) * self._n_lanes
        return 2 * (last + lanes) + self._second[lanes]


class _Pages:
    """Keys [layers, pages, H, E, PAGE_SIZE] and values [layers, pages, H, PAGE_SIZE, E in whole
    vectors], in fp32 or fp16, of the memories and of what is written.

    Where values have room for more than E numbers, the rest stays zero whoever used it before.
    """

    def __init__(self, reader: CompiledSeq2Seq, n_layers: int, n_memory: int, n_own: int) -> None:
        c, self._spare = reader.model.config, reader.spare
        padded = c.head_dim + -c.head_dim % LANES
        sizes = [c.n_heads * PAGE_SIZE * e for e in (c.head_dim, padded)]
        wanted = [n_layers * n * size for n in (n_memory, n_own) for size in sizes]
        self._parts = self._spare.pop() if self._spare else [torch.empty(0)] * len(wanted)
        dtype = reader.weights.cache_dtype
        for i, numbers in enumerate(wanted):
            if self._parts[i].numel() < numbers:
                self._parts[i] = native.memory(numbers * dtype.itemsize).view(dtype)
        steps = [n * size * dtype.itemsize for n in (n_memory, n_own) for size in sizes]
        begins = [part.data_ptr() for part in self._parts]
        self.places = [
            [begin + layer * step for begin, step in zip(begins, steps, strict=True)]
            for layer in range(n_layers)
        ]  # by layer: keys and values of the memories, and of what is written

    def __del__(self) -> None:
        self._spare.append(self._parts)


class _Side:
    def __init__(self, reader: CompiledSeq2Seq, parts: SideParts) -> None:
        c, self._weights = reader.model.config, reader.weights
        self._layers = (_Layer * len(parts.layers))(*map(self._layer, parts.layers))
        first = parts.layers[0]
        self._stack = _Stack(
            len(parts.layers), c.d_model, c.n_heads, c.head_dim, c.d_ff, int(parts.pre_norm),
            int(first.cross_q is not None), ACTIVATIONS.index(parts.activation),
            int(self._weights.cache_dtype == torch.float32), first.attention_norm.eps,
            ctypes.addressof(self._layers), self._weights.norm(parts.norm),
        )  # fmt: skip

    def read(
        self, pages: _Pages, x: Tensor, starts: Sequence[int], counts: Sequence[int],
        tables: Tensor, longest: int, memory: tuple[int, int, Tensor, Tensor] | None = None,
        copies: Tensor | None = None,
    ) -> None:  # fmt: skip
        """x [N, D], embeddings, become hidden states."""
        nothing = torch.zeros(2, 0, dtype=torch.long)
        from_, to = (nothing if copies is None else copies).contiguous().unbind(0)
        memory = memory or (1, 0, nothing, nothing)
        texts = self._texts(x, starts, counts, tables)
        numbers = (*texts, *memory[:2], memory[2].contiguous(), memory[3].contiguous(), longest,
                   torch.get_num_threads(), len(from_), from_, to)  # fmt: skip
        self._call("seq2seq_read", pages, x, longest, max(*counts, memory[0]), numbers)

    def remember(self, pages: _Pages, x: Tensor, counts: Sequence[int], tables: Tensor) -> None:
        """File keys and values of the states x [N, D] of an encoder."""
        texts = self._texts(x, [0] * len(counts), counts, tables)
        threads = torch.get_num_threads()
        self._call("seq2seq_remember", pages, x, 1, max(counts), (*texts, 1, threads))

    @staticmethod
    def _texts(x: Tensor, starts: Sequence[int], counts: Sequence[int], tables: Tensor) -> Any:
        numbers = (torch.tensor(starts), torch.tensor(counts), tables.contiguous())
        return (len(x), len(counts), tables.shape[1], *numbers)

    def _call(
        self,
        name: str,
        pages: _Pages,
        x: Tensor,
        longest: int,
        group: int,
        numbers: tuple[Any, ...],
    ) -> None:
        library = native.library("seq2seq")
        assert library is not None
        stack, threads = ctypes.byref(self._stack), torch.get_num_threads()
        with self._weights.lock:
            for i, layer in enumerate(self._layers):
                # an encoder files what only its next part reads: one place does for all layers
                places = pages.places[i if self._stack.causal else 0]
                layer.memory_keys, layer.memory_values = places[:2]
                layer.keys, layer.values = places[2:] if self._stack.causal else places[:2]
            sizes = (len(x), longest, group, threads)
            need = library.seq2seq_room(stack, *native.arguments(*sizes))
            getattr(library, name)(stack, *native.arguments(*numbers, self._weights.room(need), x))

    def _layer(self, layer: LayerParts) -> _Layer:
        w = self._weights
        cross = (Norm(), Map(), Map(), Map())
        if layer.cross_q is not None:
            assert layer.cross_kv is not None
            maps = (w.maps([layer.cross_q]), w.maps(layer.cross_kv), w.maps([layer.cross_o]))
            cross = (w.norm(layer.cross_norm), *maps)
        return _Layer(
            w.norm(layer.attention_norm), w.maps(layer.qkv), w.maps([layer.o]), *cross,
            w.norm(layer.mlp_norm), w.maps([layer.up]), w.maps([layer.down]),
        )  # fmt: skip


def _pages_of(lengths: Sequence[int]) -> tuple[Tensor, int]:
    """Pages of texts one after the other, [B, ·], and how many there are."""
    counts = (torch.tensor(lengths) + PAGE_SIZE - 1) // PAGE_SIZE
    first = counts.cumsum(0) - counts
    return first[:, None] + torch.arange(int(counts.max())), int(counts.sum())
