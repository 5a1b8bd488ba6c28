"""GPT-2 (Radford et al. 2019): learned positions, pre-norm blocks, GELU, a tied output head.

Shape legend: B batch, T time, D d_model, H heads, E head_dim, F d_ff, V vocabulary.
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
from inkstone.nn.linear import LayerNorm, Linear
from inkstone.nn.positions import position_ids

KIND = "causal"
MODEL_TYPES = ("gpt2",)
ARCHITECTURE = {"gpt2": "GPT2LMHeadModel"}


class Config(Section):
    """Shape of a GPT-2 (table 2 of the paper)."""

    vocab_size: int = Field(50257, ge=1, le=2**24)
    d_model: int = Field(768, ge=1, le=2**16)
    n_layers: int = Field(12, ge=1, le=1024)
    n_heads: int = Field(12, ge=1, le=1024)
    d_ff: int | None = Field(None, ge=1, le=2**18)
    max_seq_len: int = Field(1024, ge=1, le=2**22)
    dropout: float = Field(0.0, ge=0, lt=1)
    norm_eps: float = Field(1e-5, gt=0)

    @model_validator(mode="after")
    def _heads_divide(self) -> Config:
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads {self.n_heads} does not divide d_model {self.d_model}")
        return self

    @property
    def ff(self) -> int:
        """F, four times D unless set."""
        return self.d_ff or 4 * self.d_model

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads


PRESETS = {
    "gpt2": Config(),
    "gpt2-medium": Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt2-large": Config(d_model=1280, n_layers=36, n_heads=20),
    "gpt2-xl": Config(d_model=1600, n_layers=48, n_heads=25),
}


def count_parameters(config: Config) -> int:
    """Exact number of parameters, by hand: embeddings, then each block, then the last norm."""
    d, f = config.d_model, config.ff
    attention_part = d * 3 * d + 3 * d + d * d + d
    mlp = d * f + f + f * d + d
    block = attention_part + mlp + 4 * d
    return config.vocab_size * d + config.max_seq_len * d + config.n_layers * block + 2 * d


def flops_per_token(config: Config, seq_len: int) -> float:
    """Operations of a forward pass per token: 2 a matmul weight, 4·D per key in causal attention.

    Training takes three times as many (Kaplan et al. 2020, §2.1).
    """
    d, f = config.d_model, config.ff
    matmul = config.n_layers * (4 * d * d + 2 * d * f) + config.vocab_size * d
    return 2.0 * matmul + config.n_layers * 4 * d * (seq_len + 1) / 2


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.qkv = Linear(config.d_model, 3 * config.d_model, bias=True)
        self.out = Linear(config.d_model, config.d_model, bias=True)
        self.n_heads, self.head_dim = config.n_heads, config.head_dim

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        batch, length, width = x.shape
        split = self.qkv(x).view(batch, length, 3, self.n_heads, self.head_dim)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # each [B, H, T, E]
        if cache is not None:
            k, v = cache.update(layer, k, v)
        return self.out(attention(q, k, v, mask).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attn_norm = LayerNorm(config.d_model, config.norm_eps)
        self.attn = Attention(config)
        self.mlp_norm = LayerNorm(config.d_model, config.norm_eps)
        self.up = Linear(config.d_model, config.ff, bias=True)
        self.down = Linear(config.ff, config.d_model, bias=True)
        self.dropout = config.dropout

    def forward(self, x: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        x = x + self._drop(self.attn(self.attn_norm(x), mask, cache, layer))
        h = F.gelu(self.up(self.mlp_norm(x)), approximate="tanh")
        return x + self._drop(self.down(h))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Model(nn.Module):
    """GPT-2 as a language model with a tied head.

    Parameters stay in fp32; activations run in `compute_dtype`.
    """

    compute_dtype: torch.dtype = torch.float32
    activation_checkpointing: bool = False

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        self.positions = nn.Embedding(config.max_seq_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = LayerNorm(config.d_model, config.norm_eps)
        self.init()

    def init(self) -> None:
        """N(0, 0.02), residual projections scaled by 1/√(2·layers) (paper, §2.3)."""
        residual = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                nn.init.constant_(parameter, 1.0 if name.endswith("norm.weight") else 0.0)
            else:
                scaled = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=residual if scaled else 0.02)

    @property
    def head_weight(self) -> Tensor:
        """[V, D], shared with the token embedding."""
        return self.embed.weight

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
            length, past, device, attention_mask=attention_mask, segment_ids=segment_ids
        )
        if positions is None:
            positions = position_ids(length, past, device, attention_mask, segment_ids)
        x = self.embed(input_ids) + self.positions(positions)
        x = x.to(self.compute_dtype)
        if self.config.dropout:
            x = F.dropout(x, self.config.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            if self.activation_checkpointing and self.training:
                x = torch.utils.checkpoint.checkpoint(
                    block, x, mask, None, layer, use_reentrant=False
                )
            else:
                x = block(x, mask, cache, layer)
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
            c.n_layers, batch, c.n_kv_heads, c.head_dim, capacity,
            dtype=self.compute_dtype, device=self.head_weight.device,
        )  # fmt: skip

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by the optimizer that suits them."""
        matrices = [p for p in self.blocks.parameters() if p.dim() == 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        return {
            "matrix": matrices,
            "embedding": [self.embed.weight, self.positions.weight],
            "head": [],
            "vector": vectors,
        }


# our name → (name in a Hugging Face checkpoint, stored transposed as Conv1D does)
_NAMES = {
    "embed.weight": ("transformer.wte.weight", False),
    "positions.weight": ("transformer.wpe.weight", False),
    "final_norm.weight": ("transformer.ln_f.weight", False),
    "final_norm.bias": ("transformer.ln_f.bias", False),
    "blocks.{i}.attn_norm.weight": ("transformer.h.{i}.ln_1.weight", False),
    "blocks.{i}.attn_norm.bias": ("transformer.h.{i}.ln_1.bias", False),
    "blocks.{i}.attn.qkv.weight": ("transformer.h.{i}.attn.c_attn.weight", True),
    "blocks.{i}.attn.qkv.bias": ("transformer.h.{i}.attn.c_attn.bias", False),
    "blocks.{i}.attn.out.weight": ("transformer.h.{i}.attn.c_proj.weight", True),
    "blocks.{i}.attn.out.bias": ("transformer.h.{i}.attn.c_proj.bias", False),
    "blocks.{i}.mlp_norm.weight": ("transformer.h.{i}.ln_2.weight", False),
    "blocks.{i}.mlp_norm.bias": ("transformer.h.{i}.ln_2.bias", False),
    "blocks.{i}.up.weight": ("transformer.h.{i}.mlp.c_fc.weight", True),
    "blocks.{i}.up.bias": ("transformer.h.{i}.mlp.c_fc.bias", False),
    "blocks.{i}.down.weight": ("transformer.h.{i}.mlp.c_proj.weight", True),
    "blocks.{i}.down.bias": ("transformer.h.{i}.mlp.c_proj.bias", False),
}


def hf_names(config: Config) -> dict[str, tuple[str, bool]]:
    """Every parameter's name in a Hugging Face folder, and whether it is stored transposed."""
    return {
        ours.format(i=i): (theirs.format(i=i), turned)
        for ours, (theirs, turned) in _NAMES.items()
        for i in (range(config.n_layers) if "{i}" in ours else (0,))
    }


def to_hf_config(config: Config) -> dict[str, Any]:
    """The `config.json` that transformers reads."""
    return {
        "model_type": "gpt2",
        "vocab_size": config.vocab_size,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "n_positions": config.max_seq_len,
        "layer_norm_epsilon": config.norm_eps,
        "activation_function": "gelu_new",
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": 0.0,
        "tie_word_embeddings": True,
    }


def from_hf_config(raw: dict[str, Any]) -> Config:
    """Read a `config.json`.

    Raises:
        ModelError: The configuration asks for something that this family does not compute.
    """
    if raw.get("activation_function", "gelu_new") not in ("gelu_new", "gelu_pytorch_tanh"):
        raise ModelError(f"activation_function {raw['activation_function']!r} is not GPT-2's")
    for flag in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if raw.get(flag):
            raise ModelError(f"{flag} is not supported for GPT-2")
    if raw.get("tie_word_embeddings", True) is False:
        raise ModelError("an untied head is not supported for GPT-2")
    return Config(
        vocab_size=raw.get("vocab_size", 50257),
        d_model=raw.get("n_embd", 768),
        n_layers=raw.get("n_layer", 12),
        n_heads=raw.get("n_head", 12),
        d_ff=raw.get("n_inner"),
        max_seq_len=raw.get("n_positions", 1024),
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        dropout=raw.get("resid_pdrop", 0.1),
    )
