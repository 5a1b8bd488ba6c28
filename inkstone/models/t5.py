"""T5: "Exploring the Limits of Transfer Learning …" (Raffel et al. 2020).

An encoder–decoder of pre-norm blocks without biases (section 2.1): RMS norms, scores that are not
scaled, and instead of positions a learned bias for the distance between query and key, shared by
all layers. Version 1.1 has a gated GELU and a head of its own. Shapes: B batch, S source time, T
target time, D d_model, H heads, E head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models import _base
from inkstone.models._seq2seq import EncoderDecoder, Memory
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend
from inkstone.nn.cache import MemoryCache
from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.norms import RMSNorm
from inkstone.nn.packing import Packing
from inkstone.nn.pointwise import dropout, gelu
from inkstone.nn.positions import distance_buckets

KIND = "seq2seq"
HF_MODEL_TYPES = ("t5",)


class Config(Section):
    """Shape of a T5; the defaults are t5-small."""

    vocab_size: int = Field(default=32128, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=512, ge=1, le=1 << 24, description="a limit, not a table")
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    n_layers: int = Field(default=6, ge=1, le=1024, description="of the encoder")
    n_decoder_layers: int = Field(default=0, ge=0, le=1024, description="0: n_layers")
    n_heads: int = Field(default=8, ge=1, le=4096)
    head_dim: int = Field(default=64, ge=1, le=4096)
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 4 · d_model")
    n_buckets: int = Field(default=32, ge=4, le=1 << 16)
    max_distance: int = Field(default=128, ge=2, le=1 << 24)
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0)
    norm_eps: float = Field(default=1e-6, gt=0.0, le=1.0)
    gated: bool = Field(default=False, description="gated GELU (version 1.1) instead of ReLU")
    tied_head: bool = Field(default=True, description="the head is the embedding")
    scaled_head: bool = Field(default=True, description="states / √d_model before the head")
    start_id: int = Field(default=0, ge=0, le=1 << 22)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: f.default for name, f in cls.model_fields.items()} | values
        filled = dict(values)
        if not given["d_ff"] and isinstance(given["d_model"], int):
            filled["d_ff"] = 4 * given["d_model"]
        if not given["n_decoder_layers"]:
            filled["n_decoder_layers"] = given["n_layers"]
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.max_distance <= self.n_buckets // 2:
            raise ValueError("max_distance must be more than half of n_buckets")
        return self


def _v1_1(**shape: int) -> Config:
    return Config(gated=True, tied_head=False, scaled_head=False, **shape)  # type: ignore[arg-type]


PRESETS = {
    "t5-small": Config(),
    "t5-base": Config(d_model=768, n_layers=12, n_heads=12),
    "t5-large": Config(d_model=1024, n_layers=24, n_heads=16),
    "t5-3b": Config(d_model=1024, n_layers=24, n_heads=32, head_dim=128, d_ff=16384),
    "t5-11b": Config(d_model=1024, n_layers=24, n_heads=128, head_dim=128, d_ff=65536),
    "t5-v1.1-small": _v1_1(n_layers=8, n_heads=6, d_ff=1024),
    "t5-v1.1-base": _v1_1(d_model=768, n_layers=12, n_heads=12, d_ff=2048),
    "t5-v1.1-large": _v1_1(d_model=1024, n_layers=24, n_heads=16, d_ff=2816),
    "t5-v1.1-xl": _v1_1(d_model=2048, n_layers=24, n_heads=32, d_ff=5120),
    "t5-v1.1-xxl": _v1_1(d_model=4096, n_layers=24, n_heads=64, d_ff=10240),
}


class Shape(Protocol):
    """What a layer needs to know; `lamda` has layers of the same kind."""

    @property
    def d_model(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def gated(self) -> bool: ...
    @property
    def dropout(self) -> float: ...
    @property
    def norm_eps(self) -> float: ...


class Attention(nn.Module):
    """Multi-head attention without biases and without scaling."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        d_model, wide = config.d_model, config.n_heads * config.head_dim
        self.n_heads = config.n_heads
        self.q = Linear(d_model, wide)
        self.k = Linear(d_model, wide)
        self.v = Linear(d_model, wide)
        self.o = Linear(wide, d_model)

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, H·E] → [B, H, T, E]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention and the feed-forward part, each x + f(norm(x))."""

    def __init__(self, config: Shape) -> None:
        super().__init__()
        d_model, eps = config.d_model, config.norm_eps
        self.dropout = config.dropout
        self.attention_norm = RMSNorm(d_model, eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(d_model, eps)
        self.gate = Linear(d_model, config.d_ff) if config.gated else None
        self.up = Linear(d_model, config.d_ff)
        self.down = Linear(config.d_ff, d_model)

    def mlp(self, x: Tensor) -> Tensor:
        """ReLU, or a gated GELU (Shazeer 2020, equation 6): [..., D] → [..., D]."""
        if self.gate is None:
            return self.down(self.drop(F.relu(self.up(x))))
        gate, up = stacked(x, (self.gate, self.up)).chunk(2, dim=-1)
        return self.down(self.drop(gelu(gate) * up))

    def drop(self, x: Tensor) -> Tensor:
        """Dropout in training."""
        return dropout(x, self.dropout, self.training)


class EncoderBlock(Layer):
    """Self-attention over the whole source, then the feed-forward part."""

    def forward(self, x: Tensor, packing: Packing, view: View, bias: Tensor) -> Tensor:
        """[N, D] → [N, D]; `bias` [1, H, S, S] is the distances'."""
        a = self.attention
        qkv = packing.unpack(stacked(self.attention_norm(x), (a.q, a.k, a.v)))
        q, k, v = (a.heads(part) for part in qkv.chunk(3, -1))
        x = x + self.drop(a.o(packing.pack(attend(q, k, v, view, bias=bias, scale=1.0))))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class DecoderBlock(Layer):
    """Causal self-attention, attention over the memory, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cross_norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross = Attention(config)

    def forward(
        self,
        x: Tensor,
        view: View,
        bias: Tensor,
        memory: Memory,
        cache: MemoryCache | None,
        layer: int,
    ) -> Tensor:
        """[B, T, D] → [B, T, D]; `bias` [1, H, T, cached + T] is the distances'."""
        a = self.attention
        qkv = stacked(self.attention_norm(x), (a.q, a.k, a.v))
        q, k, v = (a.heads(part) for part in qkv.chunk(3, -1))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        x = x + self.drop(a.o(attend(q, k, v, view, bias=bias, scale=1.0)))
        q = self.cross.heads(self.cross.q(self.cross_norm(x)))
        k, v = self.memory_heads(memory, cache, layer)
        x = x + self.drop(self.cross.o(attend(q, k, v, memory.view, scale=1.0)))
        return x + self.drop(self.mlp(self.mlp_norm(x)))

    def memory_heads(
        self, memory: Memory, cache: MemoryCache | None, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the memory, [B, H, S, E] each."""
        if cache is not None and (kept := cache.memory[layer]) is not None:
            return kept
        c = self.cross
        k, v = (c.heads(part) for part in stacked(memory.states, (c.k, c.v)).chunk(2, -1))
        if cache is not None:
            cache.memory[layer] = (k, v)
        return k, v


class Side(nn.Module):
    """One of the two stacks, with its table of distances."""

    def __init__(self, config: Config, blocks: list[Layer]) -> None:
        super().__init__()
        self.distance = Embedding(config.n_buckets, config.n_heads)
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.d_model, config.norm_eps)


class Model(EncoderDecoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c = config
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.encoder = Side(c, [EncoderBlock(c) for _ in range(c.n_layers)])
        self.decoder = Side(c, [DecoderBlock(c) for _ in range(c.n_decoder_layers)])
        self.head = None if c.tied_head else Linear(c.d_model, c.vocab_size)
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """As in mesh-tensorflow: N(0, 1/fan-in), queries also over E; N(0, 1) for words.

        Words that are scored with their own embedding begin smaller, so that scores do too.
        """
        c = self.config
        wide = c.n_heads * c.head_dim
        spread = {"q": (c.d_model * c.head_dim) ** -0.5, "o": wide**-0.5, "down": c.d_ff**-0.5}
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:
                layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
                p.normal_(0.0, 1.0 if layer == "embed" else spread.get(layer, c.d_model**-0.5))

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Memory:
        """Read the source: [B, S]; the mask [B, S] is True (or 1) at tokens."""
        self.check_length(source_ids)
        packing = Packing.of(source_ids, source_mask)
        view = View.everything(packing.length, packing.real, source_ids.device)
        x = self._drop(self.embed(packing.pack(source_ids), self.compute_dtype))
        bias = self._bias(self.encoder, packing.length, packing.length, both_ways=True)
        for block in self.encoder.blocks:
            x = self.run(block, x, packing, view, bias)
        return Memory(packing.unpack(self._drop(self.encoder.norm(x))), packing.real)

    def hidden(
        self,
        input_ids: Tensor,
        memory: Memory,
        *,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
    ) -> Tensor:
        """States that words are scored from: [B, T] → [B, T, D]."""
        past = cache.length if cache is not None else 0
        view = View.of(
            input_ids,
            max_seq_len=self.config.max_seq_len,
            attention_mask=attention_mask,
            cache=cache,
        )
        length = input_ids.shape[1]
        bias = self._bias(self.decoder, length, past + length, both_ways=False)
        x = self._drop(self.embed(input_ids, self.compute_dtype))
        for layer, block in enumerate(self.decoder.blocks):
            x = self.run(block, x, view, bias, memory, cache, layer)
        x = self._drop(self.decoder.norm(x))
        return x * self.config.d_model**-0.5 if self.config.scaled_head else x

    @property
    def head_weight(self) -> Tensor:
        """[V, D]: the token embedding where the head is tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def _bias(self, side: Side, n_queries: int, n_keys: int, *, both_ways: bool) -> Tensor:
        """What distances add to the scores: [1, H, T, S]."""
        c = self.config
        buckets = distance_buckets(
            n_queries, n_keys, both_ways=both_ways, n_buckets=c.n_buckets,
            max_distance=c.max_distance, device=self.device,
        )  # fmt: skip
        return side.distance(buckets, self.compute_dtype).permute(2, 0, 1)[None]

    def _drop(self, x: Tensor) -> Tensor:
        rate = self.config.dropout
        return dropout(x, rate, self.training)


def count_parameters(config: Config) -> int:
    """Exact count, without taking memory."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds for one source and one target token, two operations each.

    Training takes three times as many. Target tokens see half of the target on average.
    """
    d, wide = config.d_model, config.n_heads * config.head_dim
    mlp = (3 if config.gated else 2) * d * config.d_ff
    encoder = config.n_layers * (4 * d * wide + mlp + 2 * seq_len * wide)
    decoder = config.n_decoder_layers * (8 * d * wide + mlp + 3 * seq_len * wide)
    return 2.0 * (encoder + decoder + config.vocab_size * d)


def _layer(side: str, letter: str, *, gated: bool) -> list[Weight]:
    """The weights of one block of one side, sub-layer by sub-layer."""
    cross, last = ("EncDecAttention", 2) if side == "decoder" else ("", 1)
    names = {f"attention.{x}": f"0.SelfAttention.{x}" for x in "qkvo"}
    names |= {f"cross.{x}": f"1.{cross}.{x}" for x in "qkvo"} if cross else {}
    names |= {"attention_norm": "0.layer_norm", "mlp_norm": f"{last}.layer_norm"}
    names |= {"cross_norm": "1.layer_norm"} if cross else {}
    up = {"gate": "wi_0", "up": "wi_1"} if gated else {"up": "wi"}
    names |= {x: f"{last}.DenseReluDense.{y}" for x, y in (up | {"down": "wo"}).items()}
    return [
        Weight(
            f"{side}.block.{{{letter}}}.layer.{theirs}.weight",
            (f"{side}.blocks.{{{letter}}}.{ours}.weight",),
        )
        for ours, theirs in names.items()
    ]


def hf_names(config: Config) -> tuple[Weight, ...]:
    """The table; a gated feed-forward part has other names, and layer 0 holds the distances."""
    rows = [Weight("shared.weight", ("embed.weight",)), Weight("lm_head.weight", ("head.weight",))]
    for side, letter in (("encoder", "e"), ("decoder", "d")):
        rows += _layer(side, letter, gated=config.gated)
        rows.append(Weight(f"{side}.final_layer_norm.weight", (f"{side}.norm.weight",)))
        theirs = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rows.append(Weight(theirs, (f"{side}.distance.weight",)))
    return tuple(rows)


HF_COUNTS = {"e": "n_layers", "d": "n_decoder_layers"}
HF_TIED = {
    "encoder.embed_tokens.weight": "embed.weight",
    "decoder.embed_tokens.weight": "embed.weight",
    "lm_head.weight": "embed.weight",
}
HF_PREFIX = ""
HF_IGNORED = (  # of the first uploads, which computed it and never used it
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",
)


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as T5ForConditionalGeneration reads it."""
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "d_model": config.d_model,
        "num_layers": config.n_layers,
        "num_decoder_layers": config.n_decoder_layers,
        "num_heads": config.n_heads,
        "d_kv": config.head_dim,
        "d_ff": config.d_ff,
        "relative_attention_num_buckets": config.n_buckets,
        "relative_attention_max_distance": config.max_distance,
        "dropout_rate": config.dropout,
        "layer_norm_epsilon": config.norm_eps,
        "feed_forward_proj": "gated-gelu" if config.gated else "relu",
        "tie_word_embeddings": config.scaled_head,
        "scale_decoder_outputs": config.scaled_head,
        "decoder_start_token_id": config.start_id,
        "initializer_factor": 1.0,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    kind = hf.get("feed_forward_proj", "relu")
    if kind not in ("relu", "gated-gelu"):
        raise ModelError(f"config.json: feed_forward_proj = {kind!r} is not supported for t5")
    tied = hf.get("tie_word_embeddings", True)
    n_layers = hf.get("num_layers", 6)
    return Config(
        vocab_size=hf.get("vocab_size", 32128),
        max_seq_len=hf.get("n_positions", 512),
        d_model=hf.get("d_model", 512),
        n_layers=n_layers,
        n_decoder_layers=hf.get("num_decoder_layers") or n_layers,
        n_heads=hf.get("num_heads", 8),
        head_dim=hf.get("d_kv", 64),
        d_ff=hf.get("d_ff", 2048),
        n_buckets=hf.get("relative_attention_num_buckets", 32),
        max_distance=hf.get("relative_attention_max_distance", 128),
        dropout=hf.get("dropout_rate", 0.1),
        norm_eps=hf.get("layer_norm_epsilon", 1e-6),
        gated=kind == "gated-gelu",
        tied_head=tied,
        scaled_head=hf.get("scale_decoder_outputs", tied),
        start_id=hf.get("decoder_start_token_id") or hf.get("pad_token_id") or 0,
    )


def fit_config(config: Config, names: set[str]) -> Config:
    """Whether the head is its own shows in the weights: version 1.1 does not scale its states."""
    own = "lm_head.weight" in names and not config.scaled_head
    return config.model_copy(update={"tied_head": not own})
