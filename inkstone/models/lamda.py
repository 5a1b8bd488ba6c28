"""LaMDA: "Language Models for Dialog Applications" (Thoppilan et al. 2022).

A decoder of the T5 kind (section 3): pre-norm blocks without biases, relative attention with
learned distances, gated GELU. Shapes: B batch, T time, S columns seen, D d_model, H heads, E
head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.models import _base, t5
from inkstone.models._base import Decoder
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend
from inkstone.nn.cache import Cache
from inkstone.nn.linear import Embedding, stacked
from inkstone.nn.norms import RMSNorm
from inkstone.nn.pointwise import dropout
from inkstone.nn.positions import distance_buckets

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_lamda",)


class Config(Section):
    """Shape of a LaMDA-style decoder; zeros are filled from the other fields."""

    vocab_size: int = Field(default=32000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=1024, ge=1, le=1 << 24, description="a limit, not a table")
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    n_layers: int = Field(default=8, ge=1, le=1024)
    n_heads: int = Field(default=8, ge=1, le=4096)
    head_dim: int = Field(default=0, ge=0, le=4096, description="0: d_model / n_heads")
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 8/3 · d_model")
    n_buckets: int = Field(default=32, ge=4, le=1 << 16)
    max_distance: int = Field(default=128, ge=2, le=1 << 24)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    norm_eps: float = Field(default=1e-6, gt=0.0, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: f.default for name, f in cls.model_fields.items()} | values
        d_model, n_heads = given["d_model"], given["n_heads"]
        if not (isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0):
            return values
        filled = dict(values)
        if not given["head_dim"]:
            filled["head_dim"] = max(1, d_model // n_heads)
        if not given["d_ff"]:
            filled["d_ff"] = -(-8 * d_model // 3 // 64) * 64
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.max_distance <= self.n_buckets:
            raise ValueError("max_distance must be more than n_buckets")
        return self

    @property
    def n_kv_heads(self) -> int:
        """Heads of keys and values: as many as of queries."""
        return self.n_heads

    @property
    def gated(self) -> bool:
        """The feed-forward part has a gate."""
        return True


PRESETS = {  # table 27; d_ff is eight times d_model
    "lamda-2b": Config(d_model=2560, n_layers=10, n_heads=40, head_dim=128, d_ff=20480),
    "lamda-8b": Config(d_model=4096, n_layers=16, n_heads=64, head_dim=128, d_ff=32768),
    "lamda-137b": Config(d_model=8192, n_layers=64, n_heads=128, head_dim=128, d_ff=65536),
}


class Block(t5.Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def forward(
        self, x: Tensor, view: View, bias: Tensor | list[Tensor], cache: Cache | None, layer: int
    ) -> Tensor:
        """[B, T, D] → [B, T, D]; `bias` is the distances', [1, H, T, S] or of each text."""
        a = self.attention
        qkv = stacked(self.attention_norm(x), (a.q, a.k, a.v))
        q, k, v = (a.heads(part) for part in qkv.chunk(3, -1))
        if cache is not None:
            k, v = cache.update(layer, k, v)
        x = x + self.drop(a.o(attend(q, k, v, view, bias=bias, scale=1.0)))
        return x + self.drop(self.mlp(self.mlp_norm(x)))


class Model(Decoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.distance = Embedding(config.n_buckets, config.n_heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None  # shares the token embedding
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """N(0, 1/fan-in), queries also over E as scores are not scaled; N(0, 0.02) for words."""
        c = self.config
        wide = c.n_heads * c.head_dim
        spread = {"q": (c.d_model * c.head_dim) ** -0.5, "o": (2 * c.n_layers * wide) ** -0.5}
        spread |= {"down": (2 * c.n_layers * c.d_ff) ** -0.5, "embed": 0.02, "distance": 0.02}
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:
                layer = name.removesuffix(".weight").rsplit(".", 1)[-1]
                p.normal_(0.0, spread.get(layer, c.d_model**-0.5))

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        c = self.config
        view = View.of(
            input_ids,
            max_seq_len=c.max_seq_len,
            attention_mask=attention_mask,
            segment_ids=segment_ids,
            cache=cache,
            positions=positions,
        )
        if view.layout is None:
            bias: Tensor | list[Tensor] = self.bias(input_ids.shape[1], view.n_columns)
        else:
            bias = [
                self.bias(new, total)
                for new, total in zip(view.layout.counts, view.layout.lengths, strict=True)
            ]
        x = self.embed(input_ids, self.compute_dtype)
        x = dropout(x, c.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            x = self.run(block, x, view, bias, cache, layer)
        return self.norm(x)

    def bias(self, n_queries: int, n_keys: int) -> Tensor:
        """What the distances add to the scores of the last `n_queries` columns: [1, H, T, S]."""
        buckets = distance_buckets(
            n_queries, n_keys, both_ways=False, n_buckets=self.config.n_buckets,
            max_distance=self.config.max_distance, device=self.device,
        )  # fmt: skip
        return self.distance(buckets, self.compute_dtype).permute(2, 0, 1)[None]


def count_parameters(config: Config) -> int:
    """Exact count, without taking memory."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; training takes three times as many.

    A query sees half of seq_len on average.
    """
    d, wide = config.d_model, config.n_heads * config.head_dim
    block = 4 * d * wide + 3 * d * config.d_ff + (seq_len + 1) * wide
    return 2.0 * (config.n_layers * block + config.vocab_size * d)


_BLOCK = {f"attention.{x}": f"self_attn.{x}_proj" for x in "qkvo"} | {
    "attention_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
HF_NAMES = (
    Weight("model.embed_tokens.weight", ("embed.weight",)),
    Weight("model.relative_attention_bias.weight", ("distance.weight",)),
    *(
        Weight(f"model.layers.{{i}}.{theirs}.weight", (f"blocks.{{i}}.{ours}.weight",))
        for ours, theirs in _BLOCK.items()
    ),
    Weight("model.norm.weight", ("norm.weight",)),
)
HF_TIED = {"lm_head.weight": "embed.weight"}
HF_PREFIX = "model."
HF_IGNORED: tuple[str, ...] = ()


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`; no other library knows the family."""
    return {
        "architectures": ["LamdaForCausalLM"],
        "model_type": HF_MODEL_TYPES[0],
        **config.model_dump(),
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**{name: hf[name] for name in Config.model_fields if name in hf})
