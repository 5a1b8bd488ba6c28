"""Llama: "LLaMA: Open and Efficient Foundation Language Models" (Touvron et al. 2023), and kin.

The modern decoder: pre-norm blocks with RMSNorm, rotary positions, SwiGLU (section 2.2), grouped
key and value heads (Ainslie et al. 2023), and by choice a norm on queries and keys (Qwen3) or a
sliding window (Mistral 7B, section 2). No biases. Shapes: B batch, T time, S columns seen, D
d_model, H heads, K kv heads, E head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
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
from inkstone.nn.norms import RMSNorm
from inkstone.nn.rope import Rope, Stretch, rotate

KIND = "causal"
HF_MODEL_TYPES = ("llama", "mistral", "qwen3")


class Config(Section):
    """Shape of a Llama-style decoder. Zeros are filled from the other fields."""

    vocab_size: int = Field(default=32000, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=2048, ge=1, le=1 << 24)
    d_model: int = Field(default=512, ge=1, le=1 << 16)
    n_layers: int = Field(default=8, ge=1, le=1024)
    n_heads: int = Field(default=8, ge=1, le=4096)
    n_kv_heads: int = Field(default=0, ge=0, le=4096, description="0: n_heads")
    head_dim: int = Field(default=0, ge=0, le=4096, description="0: d_model / n_heads")
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 8/3 · d_model")
    rope_theta: float = Field(default=10000.0, gt=0.0)
    rope_factor: float = Field(default=1.0, ge=1.0, description="1: none; Llama 3.1's stretch")
    rope_low: float = Field(default=1.0, gt=0.0, description="turns of the slowest pairs")
    rope_high: float = Field(default=4.0, gt=0.0, description="turns of pairs that keep their pace")
    rope_length: int = Field(default=8192, ge=1, le=1 << 24, description="before it was stretched")
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    qk_norm: bool = False
    sliding_window: int | None = Field(default=None, ge=1)
    tied_head: bool = True

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = {name: f.default for name, f in cls.model_fields.items()} | values
        d_model, n_heads = given["d_model"], given["n_heads"]
        if not (isinstance(d_model, int) and isinstance(n_heads, int) and n_heads > 0):
            return values
        filled = dict(values)
        if not given["n_kv_heads"]:
            filled["n_kv_heads"] = n_heads
        if not given["head_dim"]:
            if d_model % n_heads:
                raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}")
            filled["head_dim"] = d_model // n_heads
        if not given["d_ff"]:
            filled["d_ff"] = math.ceil(8 * d_model / 3 / 64) * 64
        return filled

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd; rotary positions turn pairs")
        if self.rope_low >= self.rope_high:
            raise ValueError(f"rope_low {self.rope_low} is not below rope_high {self.rope_high}")
        return self

    @property
    def stretch(self) -> Stretch | None:
        """How the rotary positions are stretched."""
        if self.rope_factor == 1.0:
            return None
        return Stretch(self.rope_factor, self.rope_low, self.rope_high, self.rope_length)


def _published(**shape: Any) -> Config:
    return Config(**{"tied_head": False, **shape})


def _first(**shape: Any) -> Config:
    return _published(norm_eps=1e-6, **shape)


def _llama3_1(**shape: Any) -> Config:
    given: dict[str, Any] = {
        "vocab_size": 128256,
        "max_seq_len": 131072,
        "n_kv_heads": 8,
        "rope_theta": 500000.0,
    }
    return _published(**{**given, "rope_factor": 32.0, **shape})


def _qwen3(**shape: Any) -> Config:
    given: dict[str, Any] = {
        "vocab_size": 151936,
        "max_seq_len": 40960,
        "n_kv_heads": 8,
        "head_dim": 128,
    }
    given |= {"rope_theta": 1e6, "norm_eps": 1e-6, "qk_norm": True, "tied_head": True}
    return Config(**{**given, **shape})


PRESETS = {
    "llama-7b": _first(d_model=4096, n_layers=32, n_heads=32, d_ff=11008),
    "llama-13b": _first(d_model=5120, n_layers=40, n_heads=40, d_ff=13824),
    "llama-30b": _first(d_model=6656, n_layers=60, n_heads=52, d_ff=17920),
    "llama-65b": _first(d_model=8192, n_layers=80, n_heads=64, d_ff=22016),
    "llama-2-7b": _published(
        max_seq_len=4096, d_model=4096, n_layers=32, n_heads=32, d_ff=11008
    ),
    "llama-2-13b": _published(
        max_seq_len=4096, d_model=5120, n_layers=40, n_heads=40, d_ff=13824
    ),
    "llama-2-70b": _published(
        max_seq_len=4096, d_model=8192, n_layers=80, n_heads=64, n_kv_heads=8, d_ff=28672
    ),
    "llama-3-8b": _published(
        vocab_size=128256, max_seq_len=8192, d_model=4096, n_layers=32, n_heads=32,
        n_kv_heads=8, d_ff=14336, rope_theta=500000.0,
    ),
    "llama-3-70b": _published(
        vocab_size=128256, max_seq_len=8192, d_model=8192, n_layers=80, n_heads=64,
        n_kv_heads=8, d_ff=28672, rope_theta=500000.0,
    ),
    "llama-3.1-8b": _llama3_1(d_model=4096, n_layers=32, n_heads=32, d_ff=14336, rope_factor=8.0),
    "llama-3.2-1b": _llama3_1(d_model=2048, n_layers=16, n_heads=32, d_ff=8192, tied_head=True),
    "llama-3.2-3b": _llama3_1(d_model=3072, n_layers=28, n_heads=24, d_ff=8192, tied_head=True),
    "mistral-7b": _published(
        max_seq_len=32768, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=14336,
        sliding_window=4096,
    ),
    "qwen3-0.6b": _qwen3(d_model=1024, n_layers=28, n_heads=16, d_ff=3072),
    "qwen3-1.7b": _qwen3(d_model=2048, n_layers=28, n_heads=16, d_ff=6144),
    "qwen3-4b": _qwen3(d_model=2560, n_layers=36, n_heads=32, d_ff=9728),
    "qwen3-8b": _qwen3(d_model=4096, n_layers=36, n_heads=32, d_ff=12288, tied_head=False),
    "tinyllama-1.1b": _published(
        d_model=2048, n_layers=22, n_heads=32, n_kv_heads=4, d_ff=5632
    ),
}  # fmt: skip


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d_model, head_dim = config.d_model, config.head_dim
        self.head_dim, self.n_kv_heads, self.n_heads = head_dim, config.n_kv_heads, config.n_heads
        self.attention_norm = RMSNorm(d_model, config.norm_eps)
        self.q = Linear(d_model, config.n_heads * head_dim)
        self.k = Linear(d_model, config.n_kv_heads * head_dim)
        self.v = Linear(d_model, config.n_kv_heads * head_dim)
        self.o = Linear(config.n_heads * head_dim, d_model)
        self.q_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head_dim, config.norm_eps) if config.qk_norm else None
        self.mlp_norm = RMSNorm(d_model, config.norm_eps)
        self.gate = Linear(d_model, config.d_ff)
        self.up = Linear(d_model, config.d_ff)
        self.down = Linear(config.d_ff, d_model)

    def forward(
        self,
        x: Tensor,
        view: View,
        angles: tuple[Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        """[B, T, D] → [B, T, D]; `angles` are the cosines and sines of the positions."""
        x = x + self.attention(self.attention_norm(x), view, angles, cache, layer)
        return x + self.mlp(self.mlp_norm(x))

    def attention(
        self,
        x: Tensor,
        view: View,
        angles: tuple[Tensor, Tensor],
        cache: Cache | None,
        layer: int,
    ) -> Tensor:
        """Grouped-query causal self-attention: [B, T, D] → [B, T, D]."""
        qkv = stacked(x, (self.q, self.k, self.v)).unflatten(-1, (-1, self.head_dim))
        heads = (self.n_heads, self.n_kv_heads)
        qk, v = qkv.split((sum(heads), self.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk.split(heads, dim=2)
            qk = torch.cat((self.q_norm(q), self.k_norm(k)), dim=2)
        q, k = rotate(qk, *angles).split(heads, dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H or K, T, E]
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.o(attend(q, k, v, view))

    def parts(self, window: int | None) -> LayerParts:
        """What a compiled reader puts together anew."""
        qk_norms = None
        if self.q_norm is not None and self.k_norm is not None:
            qk_norms = self.q_norm, self.k_norm
        return LayerParts(
            self.attention_norm, (self.q, self.k, self.v), self.o, self.mlp_norm, self.up,
            self.down, self.gate, qk_norms, window,
        )  # fmt: skip

    def mlp(self, x: Tensor) -> Tensor:
        """SwiGLU (Shazeer 2020, equation 6): [B, T, D] → [B, T, D]."""
        gate, up = stacked(x, (self.gate, self.up)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Model(Decoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(self.new_block() for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tied_head else Linear(config.d_model, config.vocab_size)
        self.rope = Rope(config.head_dim, config.rope_theta, config.max_seq_len, config.stretch)
        self.init()

    def new_block(self) -> Block:
        """One layer; a family with another feed-forward part (`mixtral`) has its own."""
        return Block(self.config)

    @torch.no_grad()
    def init(self) -> None:
        """Weights as in torchtitan's Llama (github.com/pytorch/torchtitan, models/llama3).

        The paper does not say. N(0, 0.02) for matrices and tokens, 0.02 / √(2 · n_layers) for the
        two maps of a block that write into the residual stream.
        """
        for p in self.parameters():
            if p.ndim == 2 and not p.is_meta:
                p.normal_(0.0, 0.02)
        for name, linear in self.named_modules():
            if name.endswith((".o", ".down")):
                scale_down(linear, math.sqrt(2 * self.config.n_layers))

    def embed_tokens(self, input_ids: Tensor, view: View, cache: Cache | None) -> Tensor:
        """[B, T] → [B, T, D]; a family with richer inputs (`hashgram`) adds to it."""
        return self.embed(input_ids, self.compute_dtype)

    def parts(self) -> StackParts | None:
        """What a compiled reader puts together anew; None where a family's layers are others."""
        window, blocks = self.config.sliding_window, self.blocks
        layers = tuple(block.parts(window) for block in blocks if isinstance(block, Block))
        return StackParts(layers, self.norm, self.rope)

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
            window=self.config.sliding_window,
        )
        x = self.embed_tokens(input_ids, view, cache)
        angles = self.rope.tables(view.positions, view.length, self.compute_dtype)
        for layer, block in enumerate(self.blocks):
            x = self.run(block, x, view, angles, cache, layer)
        return self.norm(x)


def count_parameters(config: Config) -> int:
    """Exact count, without building the model."""
    d, kv = config.d_model, config.n_kv_heads * config.head_dim
    attention = 2 * d * config.n_heads * config.head_dim + 2 * d * kv
    norms = 2 * d + (2 * config.head_dim if config.qk_norm else 0)
    block = attention + 3 * d * config.d_ff + norms
    tables = 1 if config.tied_head else 2
    return tables * config.vocab_size * d + config.n_layers * block + d


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; training takes three times as many.

    Only the work that the result needs: matmuls with weights, and queries times the keys they may
    see: (seq_len + 1) / 2 on average, fewer with a window.
    """
    d, wide = config.d_model, config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    matmul_parameters = config.vocab_size * d + config.n_layers * (
        2 * d * wide + 2 * d * kv + 3 * d * config.d_ff
    )
    window = min(config.sliding_window or seq_len, seq_len)
    keys_seen = (window * (window + 1) / 2 + (seq_len - window) * window) / seq_len
    attention = config.n_layers * 2 * (2 * keys_seen * wide)  # q·k, then weights·v
    return 2 * matmul_parameters + attention


HF_NAMES = (
    Weight("model.embed_tokens.weight", ("embed.weight",)),
    Weight("model.layers.{i}.input_layernorm.weight", ("blocks.{i}.attention_norm.weight",)),
    Weight("model.layers.{i}.self_attn.q_proj.weight", ("blocks.{i}.q.weight",)),
    Weight("model.layers.{i}.self_attn.k_proj.weight", ("blocks.{i}.k.weight",)),
    Weight("model.layers.{i}.self_attn.v_proj.weight", ("blocks.{i}.v.weight",)),
    Weight("model.layers.{i}.self_attn.o_proj.weight", ("blocks.{i}.o.weight",)),
    Weight("model.layers.{i}.self_attn.q_norm.weight", ("blocks.{i}.q_norm.weight",)),
    Weight("model.layers.{i}.self_attn.k_norm.weight", ("blocks.{i}.k_norm.weight",)),
    Weight("model.layers.{i}.post_attention_layernorm.weight", ("blocks.{i}.mlp_norm.weight",)),
    Weight("model.layers.{i}.mlp.gate_proj.weight", ("blocks.{i}.gate.weight",)),
    Weight("model.layers.{i}.mlp.up_proj.weight", ("blocks.{i}.up.weight",)),
    Weight("model.layers.{i}.mlp.down_proj.weight", ("blocks.{i}.down.weight",)),
    Weight("model.norm.weight", ("norm.weight",)),
    Weight("lm_head.weight", ("head.weight",)),
)
HF_TIED = {"lm_head.weight": "embed.weight"}
HF_PREFIX = "model."  # a bare LlamaModel is saved without it
HF_IGNORED = (r"(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)  # of old uploads


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as LlamaForCausalLM, MistralForCausalLM or Qwen3ForCausalLM reads it.

    The plainest of the three that has what the model uses is named. `rope_theta` is written both
    in its old place and in `rope_parameters`.
    """
    hf: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.d_ff,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": _rope(config),
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": config.tied_head,
    }
    if config.qk_norm:
        windowed = config.sliding_window is not None
        kind = "sliding_attention" if windowed else "full_attention"
        hf |= {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "use_sliding_window": windowed,
            "sliding_window": config.sliding_window,
            "max_window_layers": 0 if windowed else config.n_layers,
            "layer_types": [kind] * config.n_layers,
        }
    elif config.sliding_window is not None:
        hf |= {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "sliding_window": config.sliding_window,
        }
    return hf


def _rope(config: Config) -> dict[str, Any]:
    if config.stretch is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {
        "rope_type": "llama3",
        "rope_theta": config.rope_theta,
        "factor": config.rope_factor,
        "low_freq_factor": config.rope_low,
        "high_freq_factor": config.rope_high,
        "original_max_position_embeddings": config.rope_length,
    }


def _stretch(rope: dict[str, Any]) -> dict[str, Any]:
    """Our fields from their description of rotary positions."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {}
    if kind != "llama3":
        raise ModelError(f"config.json: rope type {kind!r} is not supported for llama")
    return {
        "rope_factor": rope["factor"],
        "rope_low": rope["low_freq_factor"],
        "rope_high": rope["high_freq_factor"],
        "rope_length": rope["original_max_position_embeddings"],
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    kind = hf.get("model_type")
    wanted = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False}
    for key, value in wanted.items():
        if hf.get(key, value) != value:
            raise ModelError(f"config.json: {key} = {hf[key]!r} is not supported for llama")
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    window = hf.get("sliding_window") if kind in ("mistral", "qwen3") else None
    if kind == "qwen3":
        layers = set(hf.get("layer_types") or ["full_attention"])
        if not hf.get("use_sliding_window") or layers == {"full_attention"}:
            window = None
        elif layers != {"sliding_attention"}:
            raise ModelError("config.json: layer_types that differ by layer are not supported")
    defaults = {"llama": (32, 2048), "mistral": (8, 131072), "qwen3": (32, 32768)}
    kv_heads, max_seq_len = defaults.get(str(kind), defaults["llama"])
    n_heads = hf.get("num_attention_heads", 32)
    return Config(
        vocab_size=hf.get("vocab_size", 32000),
        max_seq_len=hf.get("max_position_embeddings", max_seq_len),
        d_model=hf.get("hidden_size", 4096),
        n_layers=hf.get("num_hidden_layers", 32),
        n_heads=n_heads,
        n_kv_heads=hf.get("num_key_value_heads") or (n_heads if kind == "llama" else kv_heads),
        head_dim=hf.get("head_dim") or (128 if kind == "qwen3" else 0),
        d_ff=hf.get("intermediate_size", 11008),
        rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
        **_stretch(rope),
        norm_eps=hf.get("rms_norm_eps", 1e-6),
        qk_norm=kind == "qwen3",
        sliding_window=window,
        tied_head=hf.get("tie_word_embeddings", False),
    )
