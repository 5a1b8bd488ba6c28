"""The modern decoder: Llama (Touvron et al. 2023) with RoPE, RMSNorm, SwiGLU and grouped queries.

Options cover its close relatives: QK-norm (Qwen3; Dehghani et al. 2023) and a sliding window
(Mistral; Jiang et al. 2023). Shape legend: B batch, T time, D d_model, H heads, K kv heads,
E head_dim, F d_ff, V vocabulary.
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
from inkstone.nn.attention import attention, causal_mask
from inkstone.nn.cache import KVCache
from inkstone.nn.linear import Linear, RMSNorm
from inkstone.nn.positions import position_ids
from inkstone.nn.rope import Rotary, rotate

KIND = "causal"
MODEL_TYPES = ("llama", "mistral", "qwen3")
ARCHITECTURE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


class Config(Section):
    """Shape of a Llama-style decoder."""

    vocab_size: int = Field(32000, ge=1, le=2**24)
    d_model: int = Field(512, ge=2, le=2**16)
    n_layers: int = Field(8, ge=1, le=1024)
    n_heads: int = Field(8, ge=1, le=1024)
    n_kv_heads: int | None = Field(None, ge=1, le=1024)
    head_size: int | None = Field(None, ge=2, le=2**12)
    d_ff: int | None = Field(None, ge=1, le=2**18)
    max_seq_len: int = Field(1024, ge=1, le=2**22)
    rope_theta: float = Field(10000.0, gt=0)
    norm_eps: float = Field(1e-6, gt=0)
    tie_head: bool = True
    qk_norm: bool = False
    sliding_window: int | None = Field(None, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.head_size is None and self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        if self.n_heads % self.kv_heads:
            raise ValueError(f"n_kv_heads {self.kv_heads} does not divide n_heads {self.n_heads}")
        if self.head_dim % 2:
            raise ValueError(f"the head dimension {self.head_dim} must be even to be rotated")
        return self

    @property
    def kv_heads(self) -> int:
        """K, as many as query heads unless set."""
        return self.n_kv_heads or self.n_heads

    @property
    def head_dim(self) -> int:
        """E, D over H unless set."""
        return self.head_size or self.d_model // self.n_heads

    @property
    def ff(self) -> int:
        """F, 8/3 of D rounded up to a multiple of 64 unless set (SwiGLU; Shazeer 2020)."""
        return self.d_ff or -(-8 * self.d_model // (3 * 64)) * 64


PRESETS = {
    "llama-2-7b": Config(
        d_model=4096, n_layers=32, n_heads=32, d_ff=11008, max_seq_len=4096, norm_eps=1e-5,
        tie_head=False,
    ),
    "llama-3-8b": Config(
        vocab_size=128256, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=14336,
        max_seq_len=8192, rope_theta=500000.0, norm_eps=1e-5, tie_head=False,
    ),
    "tinyllama-1.1b": Config(
        d_model=2048, n_layers=22, n_heads=32, n_kv_heads=4, d_ff=5632, max_seq_len=2048,
        norm_eps=1e-5, tie_head=False,
    ),
}  # fmt: skip


def count_parameters(config: Config) -> int:
    """Exact number of parameters, by hand: embeddings, each block, the last norm, the head."""
    d, f, e = config.d_model, config.ff, config.head_dim
    attention_part = 2 * d * config.n_heads * e + 2 * d * config.kv_heads * e
    block = attention_part + 3 * d * f + 2 * d + (2 * e if config.qk_norm else 0)
    tables = config.vocab_size * d * (1 if config.tie_head else 2)
    return tables + config.n_layers * block + d


def flops_per_token(config: Config, seq_len: int) -> float:
    """Operations of a forward pass per token: 2 a matmul weight, 4·H·E per key seen.

    Training takes three times as many (Kaplan et al. 2020, §2.1).
    """
    d, f, e = config.d_model, config.ff, config.head_dim
    weights = 2 * d * config.n_heads * e + 2 * d * config.kv_heads * e + 3 * d * f
    matmul = config.n_layers * weights + config.vocab_size * d
    seen = (seq_len + 1) / 2
    if config.sliding_window is not None:
        seen = min(seen, config.sliding_window)
    return 2.0 * matmul + config.n_layers * 4 * config.n_heads * e * seen


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        d, e = config.d_model, config.head_dim
        self.q = Linear(d, config.n_heads * e)
        self.k = Linear(d, config.kv_heads * e)
        self.v = Linear(d, config.kv_heads * e)
        self.out = Linear(config.n_heads * e, d)
        self.q_norm = RMSNorm(e, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(e, config.norm_eps) if config.qk_norm else None
        self.head_dim = e

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (p(x).view(batch, length, -1, self.head_dim) for p in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q.transpose(1, 2), table), rotate(k.transpose(1, 2), table), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.out(attention(q, k, v, mask).transpose(1, 2).reshape(batch, length, -1))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.gate = Linear(config.d_model, config.ff)
        self.up = Linear(config.d_model, config.ff)
        self.down = Linear(config.ff, config.d_model)
        self.dropout = config.dropout

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
    ) -> Tensor:
        x = x + self._drop(self.attn(self.attn_norm(x), table, mask, cache, layer))
        h = self.mlp_norm(x)
        return x + self._drop(self.down(F.silu(self.gate(h)) * self.up(h)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Model(nn.Module):
    """A Llama-style language model.

    Parameters stay in fp32; activations run in `compute_dtype`.
    """

    compute_dtype: torch.dtype = torch.float32
    activation_checkpointing: bool = False
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.rotary = Rotary(config.head_dim, config.max_seq_len, config.rope_theta)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = None if config.tie_head else Linear(config.d_model, config.vocab_size)
        self.init()

    def init(self) -> None:
        """N(0, 0.02), residual projections scaled by 1/√(2·layers), as GPT-2 and OLMo do.

        The Llama paper gives no initialisation.
        """
        residual = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.ones_(parameter)
            else:
                scaled = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=residual if scaled else 0.02)

    @property
    def head_weight(self) -> Tensor:
        """[V, D], the token embedding itself when the head is tied."""
        return self.embed.weight if self.head is None else self.head.weight

    def embed_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """[B, T] → [B, T, D]; a family with richer inputs replaces this."""
        return self.embed(input_ids)

    def hidden(
        self,
        input_ids: Tensor,
        *,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        positions: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """States after the last norm.

        Args:
            input_ids: [B, T].
            attention_mask: Bool [B, S], True for real tokens; S counts cached tokens too.
            segment_ids: [B, T] document numbers that attention must not cross.
            positions: [B, T]; made from the mask or the segments when None.
            cache: Keys and values of earlier tokens; extended in place.

        Returns:
            [B, T, D] in `compute_dtype`.

        Raises:
            ModelError: The input is longer than `max_seq_len`.
        """
        past = cache.length if cache is not None else 0
        length = input_ids.shape[1]
        if past + length > self.config.max_seq_len:
            raise ModelError(
                f"{past + length} tokens do not fit the context of {self.config.max_seq_len}"
            )
        device = input_ids.device
        mask = causal_mask(
            length, past, device, attention_mask=attention_mask, segment_ids=segment_ids,
            window=self.config.sliding_window,
        )  # fmt: skip
        if positions is None:
            positions = position_ids(length, past, device, attention_mask, segment_ids)
        table = self.rotary.table(positions, self.compute_dtype)
        x = self.embed_tokens(input_ids, attention_mask, cache).to(self.compute_dtype)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(
                    block, x, table, mask, None, layer, use_reentrant=False
                )
            else:
                x = block(x, table, mask, cache, layer)
        if cache is not None:
            cache.advance(length)
        return self.final_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] → [..., V]."""
        return F.linear(hidden, self.head_weight.to(hidden.dtype))

    def forward(self, input_ids: Tensor, **inputs: Any) -> Tensor:
        """Logits [B, T, V]; takes what `hidden` takes."""
        return self.logits(self.hidden(input_ids, **inputs))

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache of `capacity` tokens for `batch` rows."""
        c = self.config
        return KVCache(
            c.n_layers, batch, c.kv_heads, c.head_dim, capacity,
            dtype=self.compute_dtype, device=self.head_weight.device,
        )  # fmt: skip

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimizer that suits them."""
        return {
            "matrix": [p for p in self.blocks.parameters() if p.dim() == 2],
            "embedding": [self.embed.weight],
            "head": [] if self.head is None else [self.head.weight],
            "vector": [p for p in self.parameters() if p.dim() < 2],
        }


_NAMES = {  # our name → name in a Hugging Face checkpoint
    "embed.weight": "model.embed_tokens.weight",
    "final_norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
    "blocks.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
    "blocks.{i}.attn.q.weight": "model.layers.{i}.self_attn.q_proj.weight",
    "blocks.{i}.attn.k.weight": "model.layers.{i}.self_attn.k_proj.weight",
    "blocks.{i}.attn.v.weight": "model.layers.{i}.self_attn.v_proj.weight",
    "blocks.{i}.attn.out.weight": "model.layers.{i}.self_attn.o_proj.weight",
    "blocks.{i}.attn.q_norm.weight": "model.layers.{i}.self_attn.q_norm.weight",
    "blocks.{i}.attn.k_norm.weight": "model.layers.{i}.self_attn.k_norm.weight",
    "blocks.{i}.mlp_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
    "blocks.{i}.gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
    "blocks.{i}.up.weight": "model.layers.{i}.mlp.up_proj.weight",
    "blocks.{i}.down.weight": "model.layers.{i}.mlp.down_proj.weight",
}


def hf_names(config: Config) -> dict[str, tuple[str, bool]]:
    """Every parameter's name in a Hugging Face folder, and whether it is stored transposed."""
    absent = () if config.qk_norm else ("q_norm", "k_norm")
    if config.tie_head:
        absent += ("head.",)
    return {
        ours.format(i=i): (theirs.format(i=i), False)
        for ours, theirs in _NAMES.items()
        if not any(part in ours for part in absent)
        for i in (range(config.n_layers) if "{i}" in ours else (0,))
    }


def to_hf_config(config: Config) -> dict[str, Any]:
    """The `config.json` that transformers reads: Llama, or the relative whose options are used."""
    kind = "qwen3" if config.qk_norm else "mistral" if config.sliding_window else "llama"
    raw: dict[str, Any] = {
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff,
        "max_position_embeddings": config.max_seq_len,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": config.tie_head,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
    }
    if kind == "llama":
        raw["mlp_bias"] = False
    if kind == "mistral":
        raw["sliding_window"] = config.sliding_window
    if kind == "qwen3":
        raw["use_sliding_window"] = config.sliding_window is not None
        raw["sliding_window"] = config.sliding_window
        raw["max_window_layers"] = 0
        layer = "sliding_attention" if config.sliding_window else "full_attention"
        raw["layer_types"] = [layer] * config.n_layers
    return raw


def from_hf_config(raw: dict[str, Any]) -> Config:
    """Read a `config.json` of Llama, Mistral or Qwen3.

    Raises:
        ModelError: The configuration asks for something that this family does not compute.
    """
    kind = raw["model_type"]
    if raw.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ModelError(f"hidden_act {raw['hidden_act']!r} is not supported for {kind}")
    for flag in ("attention_bias", "mlp_bias"):
        if raw.get(flag):
            raise ModelError(f"{flag} is not supported for {kind}")
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise ModelError(f"rope scaling {rope.get('rope_type')!r} is not supported")
    window = raw.get("sliding_window")
    if kind == "llama" or (kind == "qwen3" and not raw.get("use_sliding_window")):
        window = None
    layers = set(raw.get("layer_types") or ())
    if window is not None and "full_attention" in layers:
        raise ModelError("a mix of sliding and full attention layers is not supported")
    return Config(
        vocab_size=raw.get("vocab_size", 32000),
        d_model=raw.get("hidden_size", 4096),
        n_layers=raw.get("num_hidden_layers", 32),
        n_heads=raw.get("num_attention_heads", 32),
        n_kv_heads=raw.get("num_key_value_heads"),
        head_size=raw.get("head_dim"),
        d_ff=raw.get("intermediate_size", 11008),
        max_seq_len=raw.get("max_position_embeddings", 2048),
        rope_theta=rope.get("rope_theta", raw.get("rope_theta", 10000.0)),
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        tie_head=raw.get("tie_word_embeddings", False),
        qk_norm=kind == "qwen3",
        sliding_window=window,
    )
