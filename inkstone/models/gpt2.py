"""GPT-2: "Language Models are Unsupervised Multitask Learners" (Radford et al. 2019).

A stack of pre-norm Transformer blocks (section 2.3) with learned positions, GELU in its tanh form,
biases everywhere, and a head that shares the token embedding. Shapes: B batch, T time, S columns
seen (cached and new), D d_model, H heads, E head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models._base import Decoder, scale_down
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend
from inkstone.nn.cache import Cache
from inkstone.nn.compiled_decoder import LayerParts, StackParts
from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.norms import LayerNorm
from inkstone.nn.pointwise import dropout, gelu

KIND = "causal"
HF_MODEL_TYPES = ("gpt2",)


class Config(Section):
    """Shape of a GPT-2; the defaults are the smallest published one (124M parameters)."""

    vocab_size: int = Field(default=50257, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=1024, ge=1, le=1 << 24)
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    n_layers: int = Field(default=12, ge=1, le=1024)
    n_heads: int = Field(default=12, ge=1, le=4096)
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 4 · d_model")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="embedding and residuals")
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _default_width(cls, values: dict[str, Any]) -> dict[str, Any]:
        if not values.get("d_ff"):
            d_model = values.get("d_model", cls.model_fields["d_model"].default)
            if isinstance(d_model, int):
                values = {**values, "d_ff": 4 * d_model}
        return values

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self

    @property
    def head_dim(self) -> int:
        """E."""
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.n_heads


PRESETS = {
    "gpt2": Config(),
    "gpt2-medium": Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": Config(d_model=1600, n_layers=48, n_heads=25),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d_model = config.d_model
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.attention_norm = LayerNorm(d_model, config.norm_eps)
        self.q = Linear(d_model, d_model, bias=True)
        self.k = Linear(d_model, d_model, bias=True)
        self.v = Linear(d_model, d_model, bias=True)
        self.o = Linear(d_model, d_model, bias=True)
        self.mlp_norm = LayerNorm(d_model, config.norm_eps)
        self.up = Linear(d_model, config.d_ff, bias=True)
        self.down = Linear(config.d_ff, d_model, bias=True)

    def forward(self, x: Tensor, view: View, cache: Cache | None, layer: int) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        x = x + self._drop(self.attention(self.attention_norm(x), view, cache, layer))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def attention(self, x: Tensor, view: View, cache: Cache | None, layer: int) -> Tensor:
        """Multi-head causal self-attention: [B, T, D] → [B, T, D]."""
        qkv = stacked(x, (self.q, self.k, self.v)).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))  # [B, H, T, E]
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.o(attend(q, k, v, view))

    def mlp(self, x: Tensor) -> Tensor:
        """Two linear maps around a GELU: [B, T, D] → [B, T, D]."""
        return self.down(gelu(self.up(x)))

    def parts(self, window: int | None) -> LayerParts:
        """What a compiled reader puts together anew."""
        return LayerParts(
            self.attention_norm, (self.q, self.k, self.v), self.o, self.mlp_norm, self.up,
            self.down, window=window,
        )  # fmt: skip

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Model(Decoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.position = Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = LayerNorm(config.d_model, config.norm_eps)
        self.head = None  # shares the token embedding
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """Weights as in the paper and OpenAI's code (github.com/openai/gpt-2, src/model.py).

        N(0, 0.02) for matrices and tokens, N(0, 0.01) for positions, zero for biases; "we scale
        the weights of residual layers by 1/√N where N is the number of residual layers" (section
        2.3), of which a block has two.
        """
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:
                p.normal_(0.0, 0.01 if name == "position.weight" else 0.02)
            elif name.endswith("bias"):
                p.zero_()
        for block in self.blocks:
            assert isinstance(block, Block)
            scale_down(block.o, math.sqrt(2 * self.config.n_layers))
            scale_down(block.down, math.sqrt(2 * self.config.n_layers))

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        view = View.of(
            input_ids,
            max_seq_len=self.config.max_seq_len,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            cache=cache,
            positions=positions,
        )
        x = self.embed_tokens(input_ids, view, cache)
        views = [view if band is None else view.banded(band) for band in self.bands]
        for layer, block in enumerate(self.blocks):
            x = self.run(block, x, views[layer % len(views)], cache, layer)
        return self.norm(x)

    def embed_tokens(self, input_ids: Tensor, view: View, cache: Cache | None) -> Tensor:
        """Tokens and their places: [B, T] → [B, T, D]."""
        x = self.embed(input_ids, self.compute_dtype)
        x = x + self.position(view.positions, self.compute_dtype)
        return dropout(x, self.config.dropout, self.training)

    def parts(self) -> StackParts | None:
        """What a compiled reader puts together anew."""
        blocks = [block for block in self.blocks if isinstance(block, Block)]
        bands = (self.bands[i % len(self.bands)] for i in range(len(blocks)))
        layers = tuple(b.parts(band) for b, band in zip(blocks, bands, strict=True))
        return StackParts(layers, self.norm)

    @property
    def period(self) -> int:
        """Layers with a band take turns with layers without one (`gpt3`)."""
        return len(set(self.bands))

    @property
    def bands(self) -> tuple[int | None, ...]:
        """How many tokens layers 0, 1, … see, again from the first when they run out; None: all."""
        return (None,)


def count_parameters(config: Config) -> int:
    """Exact count; the head shares the embedding and adds none."""
    d, f = config.d_model, config.d_ff
    norm = 2 * d
    attention = 4 * (d * d + d)
    mlp = (d * f + f) + (f * d + d)
    block = norm + attention + norm + mlp
    return (config.vocab_size + config.max_seq_len) * d + config.n_layers * block + norm


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; training takes three times as many.

    Only the work that the result needs: matmuls with weights, and queries times the keys they may
    see, half of seq_len on average.
    """
    d, f = config.d_model, config.d_ff
    matmul_parameters = config.n_layers * (4 * d * d + 2 * d * f) + config.vocab_size * d
    keys_seen = (seq_len + 1) / 2
    attention = config.n_layers * 2 * (2 * keys_seen * d)  # q·k, then weights·v
    return 2 * matmul_parameters + attention


# Their Conv1D stores a linear map transposed, and q, k, v side by side.
HF_NAMES = (
    Weight("transformer.wte.weight", ("embed.weight",)),
    Weight("transformer.wpe.weight", ("position.weight",)),
    Weight("transformer.h.{i}.ln_1.weight", ("blocks.{i}.attention_norm.weight",)),
    Weight("transformer.h.{i}.ln_1.bias", ("blocks.{i}.attention_norm.bias",)),
    Weight(
        "transformer.h.{i}.attn.c_attn.weight",
        ("blocks.{i}.q.weight", "blocks.{i}.k.weight", "blocks.{i}.v.weight"),
        transposed=True,
    ),
    Weight(
        "transformer.h.{i}.attn.c_attn.bias",
        ("blocks.{i}.q.bias", "blocks.{i}.k.bias", "blocks.{i}.v.bias"),
    ),
    Weight("transformer.h.{i}.attn.c_proj.weight", ("blocks.{i}.o.weight",), transposed=True),
    Weight("transformer.h.{i}.attn.c_proj.bias", ("blocks.{i}.o.bias",)),
    Weight("transformer.h.{i}.ln_2.weight", ("blocks.{i}.mlp_norm.weight",)),
    Weight("transformer.h.{i}.ln_2.bias", ("blocks.{i}.mlp_norm.bias",)),
    Weight("transformer.h.{i}.mlp.c_fc.weight", ("blocks.{i}.up.weight",), transposed=True),
    Weight("transformer.h.{i}.mlp.c_fc.bias", ("blocks.{i}.up.bias",)),
    Weight("transformer.h.{i}.mlp.c_proj.weight", ("blocks.{i}.down.weight",), transposed=True),
    Weight("transformer.h.{i}.mlp.c_proj.bias", ("blocks.{i}.down.bias",)),
    Weight("transformer.ln_f.weight", ("norm.weight",)),
    Weight("transformer.ln_f.bias", ("norm.bias",)),
)
HF_TIED = {"lm_head.weight": "embed.weight"}
HF_PREFIX = "transformer."  # OpenAI's own upload leaves it out
HF_IGNORED = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)  # causal masks of old uploads


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as GPT2LMHeadModel reads it."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_positions": config.max_seq_len,
        "n_ctx": config.max_seq_len,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "initializer_range": 0.02,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "tie_word_embeddings": True,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    wanted = {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "tie_word_embeddings": (True,),
        "add_cross_attention": (False,),
    }
    for key, values in wanted.items():
        if hf.get(key, values[0]) not in values:
            raise ModelError(f"config.json: {key} = {hf[key]!r} is not supported for gpt2")
    return Config(
        vocab_size=hf.get("vocab_size", 50257),
        max_seq_len=hf.get("n_positions", 1024),
        d_model=hf.get("n_embd", 768),
        n_layers=hf.get("n_layer", 12),
        n_heads=hf.get("n_head", 12),
        d_ff=hf.get("n_inner") or 0,
        dropout=hf.get("resid_pdrop", 0.1),
        norm_eps=hf.get("layer_norm_epsilon", 1e-5),
    )
