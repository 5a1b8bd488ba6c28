"""The Transformer: "Attention Is All You Need" (Vaswani et al. 2017).

An encoder that reads the source and a decoder that writes the target while looking at it. Blocks
are post-norm as published (section 3.1), or pre-norm by choice (Xiong et al. 2020), which trains
without warmup; positions are sinusoidal (section 3.5). `marian` and `bart` are this network with
other settings. Shapes: B batch, S source time, T target time, N source tokens without padding, D
d_model, H heads, E head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models import _base
from inkstone.models._seq2seq import EncoderDecoder, Memory
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend, attend_packed
from inkstone.nn.cache import MemoryCache
from inkstone.nn.compiled_seq2seq import LayerParts, SideParts
from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.norms import LayerNorm
from inkstone.nn.packing import Packing
from inkstone.nn.pointwise import dropout
from inkstone.nn.positions import sinusoids

KIND = "seq2seq"
HF_MODEL_TYPES = ("inkstone_transformer", "marian")
SideName = Literal["encoder", "decoder"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "swish": F.silu,
}


class Config(Section):
    """Shape of an encoder–decoder; the defaults are the base model of the paper (table 3)."""

    vocab_size: int = Field(default=37000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=512, ge=1, le=1 << 24)
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    n_layers: int = Field(default=6, ge=1, le=1024, description="of the encoder")
    n_decoder_layers: int = Field(default=0, ge=0, le=1024, description="0: n_layers")
    n_heads: int = Field(default=8, ge=1, le=4096)
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 4 · d_model")
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="embedding and residuals")
    pre_norm: bool = False
    activation: Literal["relu", "gelu", "swish"] = "relu"
    positions: Literal["sinusoidal", "learned"] = "sinusoidal"
    scale_embedding: bool = Field(default=True, description="embeddings times √d_model")
    embedding_norm: bool = False
    start_id: int = Field(default=0, ge=0, le=1 << 22, description="what the decoder begins with")

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
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.start_id >= self.vocab_size:
            raise ValueError(f"start_id {self.start_id} is not below vocab_size {self.vocab_size}")
        return self

    @property
    def head_dim(self) -> int:
        """E."""
        return self.d_model // self.n_heads


PRESETS = {
    "transformer-base": Config(),
    "transformer-big": Config(d_model=1024, n_heads=16, dropout=0.3),
}


class Attention(nn.Module):
    """Multi-head attention (section 3.2.2): four linear maps with biases."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d_model = config.d_model
        self.n_heads = config.n_heads
        self.q = Linear(d_model, d_model, bias=True)
        self.k = Linear(d_model, d_model, bias=True)
        self.v = Linear(d_model, d_model, bias=True)
        self.o = Linear(d_model, d_model, bias=True)

    def heads(self, x: Tensor) -> Tensor:
        """[B, T, H·E] → [B, H, T, E]."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def own(self, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of one sequence."""
        return stacked(x, (self.q, self.k, self.v)).chunk(3, -1)


class Layer(nn.Module):
    """What a layer of the encoder and one of the decoder have in common."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.pre_norm, self.dropout = config.pre_norm, config.dropout
        self.activation = config.activation
        self.attention = Attention(config)
        self.attention_norm = LayerNorm(config.d_model)
        self.up = Linear(config.d_model, config.d_ff, bias=True)
        self.down = Linear(config.d_ff, config.d_model, bias=True)
        self.mlp_norm = LayerNorm(config.d_model)

    def parts(self) -> LayerParts:
        """The layer by its parts."""
        a = self.attention
        norms = (self.attention_norm, self.mlp_norm)
        return LayerParts(norms[0], (a.q, a.k, a.v), a.o, norms[1], self.up, self.down)

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear maps around an activation (equation 2): [..., D] → [..., D]."""
        return self.down(ACTIVATIONS[self.activation](self.up(x)))

    def before(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """What a sub-layer reads."""
        return norm(x) if self.pre_norm else x

    def after(self, x: Tensor, update: Tensor, norm: LayerNorm) -> Tensor:
        """The residual sum, with the norm where it belongs."""
        update = dropout(update, self.dropout, self.training)
        return x + update if self.pre_norm else norm(x + update)


class EncoderBlock(Layer):
    """Self-attention over the whole source, then the feed-forward part."""

    def forward(self, x: Tensor, packing: Packing, view: View) -> Tensor:
        """[N, D] → [N, D]."""
        a = self.attention
        read = self.before(x, self.attention_norm)
        q, k, v = (part.unflatten(-1, (a.n_heads, -1)) for part in a.own(read))
        x = self.after(x, a.o(attend_packed(q, k, v, packing, view)), self.attention_norm)
        return self.after(x, self.mlp(self.before(x, self.mlp_norm)), self.mlp_norm)


class DecoderBlock(Layer):
    """Causal self-attention, attention over the memory, then the feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cross = Attention(config)
        self.cross_norm = LayerNorm(config.d_model)

    def parts(self) -> LayerParts:
        """The layer by its parts."""
        c = self.cross
        return replace(
            super().parts(), cross_norm=self.cross_norm, cross_q=c.q, cross_kv=(c.k, c.v),
            cross_o=c.o,
        )  # fmt: skip

    def forward(
        self, x: Tensor, view: View, memory: Memory, cache: MemoryCache | None, layer: int
    ) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        a = self.attention
        q, k, v = (a.heads(part) for part in a.own(self.before(x, self.attention_norm)))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        x = self.after(x, a.o(attend(q, k, v, view)), self.attention_norm)
        c, read = self.cross, self.before(x, self.cross_norm)
        k, v = self.memory_heads(memory, cache, layer)
        seen = attend(c.heads(c.q(read)), k, v, memory.view)
        x = self.after(x, c.o(seen), self.cross_norm)
        return self.after(x, self.mlp(self.before(x, self.mlp_norm)), self.mlp_norm)

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
    """One of the two stacks, with its own positions and norms."""

    def __init__(self, config: Config, blocks: list[Layer], first_position: int) -> None:
        super().__init__()
        d_model, rows = config.d_model, first_position + config.max_seq_len
        self.position = Embedding(rows, d_model) if config.positions == "learned" else None
        self.embed_norm = LayerNorm(d_model) if config.embedding_norm else None
        self.blocks = nn.ModuleList(blocks)
        self.norm = LayerNorm(d_model) if config.pre_norm else None


class Model(EncoderDecoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config
    word_bias: Tensor
    first_position = 0  # row of the table of learned positions
    logits_bias = False  # a constant on every word's score

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        c, first = config, self.first_position
        self.embed = Embedding(c.vocab_size, c.d_model)
        self.encoder = Side(c, [EncoderBlock(c) for _ in range(c.n_layers)], first)
        self.decoder = Side(c, [DecoderBlock(c) for _ in range(c.n_decoder_layers)], first)
        if self.logits_bias:  # not trained, as in the networks that have it
            self.register_buffer("word_bias", torch.zeros(1, c.vocab_size))
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """Glorot & Bengio 2010 for maps, as in tensor2tensor; N(0, 1/d_model) for tables."""
        for module in self.modules():
            if isinstance(module, Embedding) and not module.weight.is_meta:
                module.weight.normal_(0.0, self.config.d_model**-0.5)
            elif isinstance(module, Linear) and not module.weight.is_meta:
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    module.bias.zero_()

    def encode(self, source_ids: Tensor, *, source_mask: Tensor | None = None) -> Memory:
        """Read the source: [B, S]; the mask [B, S] is True (or 1) at tokens."""
        self.check_length(source_ids)
        packing = Packing.of(source_ids, source_mask)
        view = View.everything(packing.length, packing.real, source_ids.device)
        places = self.places("encoder", packing.pack(view.positions.expand_as(source_ids)))
        x = self.embed_side("encoder", packing.pack(source_ids), places)
        for block in self.encoder.blocks:
            x = self.run(block, x, packing, view)
        x = x if self.encoder.norm is None else self.encoder.norm(x)
        return Memory(packing.unpack(x), packing.real)

    def hidden(
        self,
        input_ids: Tensor,
        memory: Memory,
        *,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
    ) -> Tensor:
        """States that words are scored from: [B, T] → [B, T, D]."""
        view = View.of(
            input_ids,
            max_seq_len=self.config.max_seq_len,
            attention_mask=attention_mask,
            cache=cache,
        )
        places = self.places("decoder", view.positions.expand_as(input_ids))
        x = self.embed_side("decoder", input_ids, places)
        for layer, block in enumerate(self.decoder.blocks):
            x = self.run(block, x, view, memory, cache, layer)
        return x if self.decoder.norm is None else self.decoder.norm(x)

    @property
    def head_bias(self) -> Tensor | None:
        """[V]."""
        return self.word_bias[0] if self.logits_bias else None

    def places(self, name: SideName, positions: Tensor) -> Tensor:
        """What a side adds to words at positions (section 3.5): [...] → [..., D]."""
        side, dtype = self._side(name), self.compute_dtype
        if side.position is not None:
            return side.position(positions + self.first_position, dtype)
        return sinusoids(positions, self.config.d_model).to(dtype)

    def embed_side(self, name: SideName, ids: Tensor, places: Tensor) -> Tensor:
        """Words at their places (section 3.4): [...] and [..., D] or what spreads to it → the
        same."""
        c, norm = self.config, self._side(name).embed_norm
        x = self.embed(ids, self.compute_dtype)
        x = (x * math.sqrt(c.d_model) if c.scale_embedding else x) + places
        return dropout(x if norm is None else norm(x), c.dropout, self.training)

    def side_parts(self, name: SideName) -> SideParts | None:
        """A side by its parts, for compiled code; None where it cannot do the whole."""
        side = self._side(name)
        layers = tuple(block.parts() for block in side.blocks)  # type: ignore[operator]
        return SideParts(layers, side.norm, self.config.pre_norm, self.config.activation)

    def _side(self, name: SideName) -> Side:
        return self.encoder if name == "encoder" else self.decoder


def count_parameters(config: Config) -> int:
    """Exact count; source, target and head share one table of words."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds for one source and one target token, two operations each.

    Training takes three times as many. Target tokens see half of the target on average.
    """
    d, f = config.d_model, config.d_ff
    encoder = config.n_layers * (4 * d * d + 2 * d * f + 2 * seq_len * d)
    decoder = config.n_decoder_layers * (8 * d * d + 2 * d * f + 3 * seq_len * d)
    return 2.0 * (encoder + decoder + config.vocab_size * d)


ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"}


def _layer(side: str, letter: str) -> tuple[Weight, ...]:
    """Both parts of every layer of one block of one side."""
    names = {f"attention.{ours}": f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()}
    names |= {"attention_norm": "self_attn_layer_norm", "up": "fc1", "down": "fc2"}
    names |= {"mlp_norm": "final_layer_norm"}
    if side == "decoder":
        names |= {f"cross.{ours}": f"encoder_attn.{theirs}" for ours, theirs in ATTENTION.items()}
        names |= {"cross_norm": "encoder_attn_layer_norm"}
    return tuple(
        Weight(
            f"model.{side}.layers.{{{letter}}}.{theirs}.{part}",
            (f"{side}.blocks.{{{letter}}}.{ours}.{part}",),
        )
        for ours, theirs in names.items()
        for part in ("weight", "bias")
    )


HF_COUNTS = {"e": "n_layers", "d": "n_decoder_layers"}
HF_NAMES = (
    Weight("model.shared.weight", ("embed.weight",)),
    *_layer("encoder", "e"),
    *_layer("decoder", "d"),
    *(
        Weight(f"model.{side}.{theirs}.{part}", (f"{side}.{ours}.{part}",))
        for side in ("encoder", "decoder")
        for ours, theirs in (("embed_norm", "layernorm_embedding"), ("norm", "layer_norm"))
        for part in ("weight", "bias")
    ),
    *(
        Weight(f"model.{side}.embed_positions.weight", (f"{side}.position.weight",))
        for side in ("encoder", "decoder")
    ),
    Weight("final_logits_bias", ("word_bias",)),
)
HF_TIED = {
    "model.encoder.embed_tokens.weight": "embed.weight",
    "model.decoder.embed_tokens.weight": "embed.weight",
    "lm_head.weight": "embed.weight",
}
HF_PREFIX = "model."
HF_IGNORED: tuple[str, ...] = ()
HF_OPTIONAL = ("final_logits_bias",)  # zero where a folder leaves it out


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`: MarianMTModel of transformers where that network is the same.

    The published model is: post-norm, sinusoidal positions. What else can be chosen has no
    counterpart there, and the folder opens in Inkstone only.
    """
    plain = not config.pre_norm and config.positions == "sinusoidal" and not config.embedding_norm
    return {
        "architectures": ["MarianMTModel" if plain else "TransformerForConditionalGeneration"],
        "model_type": "marian" if plain else "inkstone_transformer",
        "inkstone_family": "transformer",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "d_model": config.d_model,
        "encoder_layers": config.n_layers,
        "decoder_layers": config.n_decoder_layers,
        "encoder_attention_heads": config.n_heads,
        "decoder_attention_heads": config.n_heads,
        "encoder_ffn_dim": config.d_ff,
        "decoder_ffn_dim": config.d_ff,
        "activation_function": config.activation,
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "scale_embedding": config.scale_embedding,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
        "decoder_start_token_id": config.start_id,
        "pre_norm": config.pre_norm,
        "positions": config.positions,
        "embedding_norm": config.embedding_norm,
        "init_std": 0.02,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    kind = hf.get("model_type")
    wanted = {
        "decoder_vocab_size": hf.get("vocab_size"),
        "decoder_attention_heads": hf.get("encoder_attention_heads"),
        "decoder_ffn_dim": hf.get("encoder_ffn_dim"),
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }
    for key, value in wanted.items():
        if hf.get(key, value) not in (value, None):
            raise ModelError(f"config.json: {key} = {hf[key]!r} is not supported for {kind}")
    activation = hf.get("activation_function", "gelu")
    return Config(
        vocab_size=hf.get("vocab_size", 58101),
        max_seq_len=hf.get("max_position_embeddings", 1024),
        d_model=hf.get("d_model", 1024),
        n_layers=hf.get("encoder_layers", 12),
        n_decoder_layers=hf.get("decoder_layers", 12),
        n_heads=hf.get("encoder_attention_heads", 16),
        d_ff=hf.get("encoder_ffn_dim", 4096),
        dropout=hf.get("dropout", 0.1),
        activation="swish" if activation == "silu" else activation,
        scale_embedding=hf.get("scale_embedding", False),
        pre_norm=hf.get("pre_norm", False),
        positions=hf.get("positions", "sinusoidal"),
        embedding_norm=hf.get("embedding_norm", False),
        start_id=hf.get("decoder_start_token_id", 0) or 0,
    )
