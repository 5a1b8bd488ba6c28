"""Networks as graphs whose batch and length stay open, for torch.export.

No size may depend on what a mask holds, so encoders compute their padding here. Shapes: B batch, T
time, P tokens read before, V vocab, D d_model, K kv heads, E head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.compression.export._base import Source, unsupported
from inkstone.inference.embed import Pooling
from inkstone.nn.attention import View
from inkstone.nn.cache import KVCache
from inkstone.nn.packing import Packing
from inkstone.nn.pooling import pool
from inkstone.nn.rope import Rope

ENCODERS = ("bert", "roberta", "distilbert", "modernbert")
DECODERS = ("gpt2", "gpt3", "llama")
KNOWN = f"{', '.join(ENCODERS + DECODERS)}; of encoder-decoders ctranslate2 holds some"
Pairs = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Graph:
    """A network with its inputs and outputs.

    Attributes:
        module: Takes tensors in the order of `inputs`, keys and values in one list of pairs.
        inputs: Names of all inputs.
        outputs: Names of all outputs.
        of_tokens: Those that mean nothing at padding.
        past: How many layers remember tokens; 0 for encoders.
    """

    module: nn.Module
    inputs: list[str]
    outputs: list[str]
    of_tokens: list[str]
    past: int = 0


def graph(source: Source) -> Graph:
    """The graph of a model.

    Raises:
        ModelError: The family has none here.
    """
    if source.family in ENCODERS:
        return _encoder(source)
    if source.family in DECODERS:
        return _decoder(source.model)
    raise unsupported(source, "ONNX", KNOWN)


def example(made: Graph, config: Any, batch: int, time: int, past: int, seed: int = 0) -> list[Any]:
    """Random inputs: rows of unlike lengths, padded on the right for encoders, left for decoders.

    Args:
        made: The graph.
        config: Of the model.
        batch: B.
        time: T.
        past: P, of decoders.
        seed: Of all numbers.
    """
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (batch, time), generator=draw)
    lengths = torch.randint(1, past + time + 1, (batch,), generator=draw)
    lengths[0] = past + time
    column = torch.arange(past + time)
    if made.past:
        mask = (column >= past + time - lengths[:, None]).long()
        shape = (batch, config.n_kv_heads, past, config.head_dim)
        pairs = [
            (torch.randn(shape, generator=draw), torch.randn(shape, generator=draw))
            for _ in range(made.past)
        ]
        return [ids, mask, pairs]
    inputs: list[Any] = [ids, (column < lengths[:, None]).long()]
    if "token_type_ids" in made.inputs:
        inputs.append(torch.randint(0, config.n_token_types, (batch, time), generator=draw))
    return inputs


# --- encoders ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _AllPlaces(Packing):
    """A batch of which every place is computed; padding stands on the right."""

    mask: Tensor

    def first(self) -> Tensor:
        return torch.arange(self.batch, device=self.device) * self.length

    def mean(self, x: Tensor) -> Tensor:
        return pool(self.unpack(x), self.mask, "mean")


def _layout(
    input_ids: Tensor, attention_mask: Tensor, window: int | None = None
) -> tuple[Packing, View]:
    """In place of `Encoder.layout`."""
    batch, length = input_ids.shape
    device, mask = input_ids.device, attention_mask.bool()
    packing = _AllPlaces(batch, length, device, None, None, batch * length, mask)
    return packing, View.everything(length, mask, device, window)


class _Encoder(nn.Module):
    def __init__(self, model: Any, pooling: Pooling) -> None:
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        head = self.model.config.head
        out = self.model(input_ids, attention_mask=attention_mask, token_types=token_type_ids)
        if head == "pretraining":
            return out[0], out[1]
        if head == "span":
            return out[..., 0], out[..., 1]
        if head != "none":
            return (out,)
        vectors = pool(out, attention_mask.bool(), self.pooling.mode)
        return out, F.normalize(vectors, dim=-1) if self.pooling.normalize else vectors


OUTPUTS = {
    "none": ["last_hidden_state", "sentence_embedding"],
    "pretraining": ["logits", "next_sentence_logits"],
    "span": ["start_logits", "end_logits"],
}


def _encoder(source: Source) -> Graph:
    model = source.model
    for rope in (m for m in model.modules() if isinstance(m, Rope)):
        rope.grow(model.config.max_seq_len)
    inputs = ["input_ids", "attention_mask"]
    if getattr(model.config, "n_token_types", 0) > 1:
        inputs.append("token_type_ids")
    bare = model.config.head == "none"
    pooling = Pooling.read(source.folder) if bare else Pooling()
    outputs = OUTPUTS.get(model.config.head, ["logits"])
    of_texts = ("sentence_embedding", "next_sentence_logits")
    of_tokens = [name for name in outputs if name not in of_texts]
    # set on this model alone, a copy: a method of the same name would be that of its class
    model.layout = _layout
    return Graph(
        _Encoder(model, pooling), inputs, outputs,
        [] if model.config.head == "sequence" else of_tokens,
    )  # fmt: skip


# --- decoders ------------------------------------------------------------------------------------


class _Growing(KVCache):
    """Keys and values as tensors that come in and go out, longer by the new tokens."""

    def __init__(self, past: Sequence[tuple[Tensor, Tensor]]) -> None:
        self.past = past
        self.present: Pairs = []
        self.length, self.padded = past[0][0].shape[2], False

    def reserve(self, n_new: int, real: Tensor | None = None) -> None:
        """Nothing is allocated ahead."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        old_keys, old_values = self.past[layer]
        pair = torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        self.present.append(pair)
        return pair


class _Decoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, past: Pairs
    ) -> tuple[Tensor, Pairs]:
        cache = _Growing(past)
        hidden = self.model.hidden(input_ids, attention_mask=attention_mask, cache=cache)
        return self.model.logits(hidden), cache.present


def _decoder(model: Any) -> Graph:
    if hasattr(model, "rope"):
        model.rope.grow(model.config.max_seq_len)
    n = model.config.n_layers
    names = [f"{i}.{part}" for i in range(n) for part in ("key", "value")]
    return Graph(
        _Decoder(model),
        ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in names)],
        ["logits", *(f"present.{name}" for name in names)],
        ["logits"],
        past=n,
    )
