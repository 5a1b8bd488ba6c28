"""A Llama-style decoder whose inputs also carry hashed n-grams.

Each position adds to its token's embedding one learned vector for each of the last 2, 3 … n
tokens, found by hashing (Byte Latent Transformer, Pagnoni et al. 2024, section 3.2.1, eq. 2-4). A
look-up costs no matmul, so for characters and bytes it buys in seconds what layers take minutes to
learn. The folder it is saved as opens in Inkstone only: no other library knows the family.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from inkstone.models import llama
from inkstone.models._weights import Weight
from inkstone.nn.attention import View
from inkstone.nn.cache import Cache, KVCache
from inkstone.nn.linear import Embedding

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_hashgram",)
PRIME = 1000003  # below 2^20, so that the running hash stays far inside int64


class Config(llama.Config):
    """A Llama shape and its n-gram table: `ngram_buckets` rows for each order from 2 on."""

    ngram_order: int = Field(default=4, ge=2, le=16)
    ngram_buckets: int = Field(default=16384, ge=16, le=1 << 24)


PRESETS: dict[str, Config] = {}


class RememberingCache(KVCache):
    """A key-value cache that also keeps the tokens, since an n-gram reaches back over them."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.ids = torch.zeros_like(self.real, dtype=torch.long)

    def remember(self, ids: Tensor) -> Tensor:
        """Store the ids [B, T] of the columns reserved last; all ids so far, [B, S]."""
        self.ids[:, self.length - ids.shape[1] : self.length] = ids
        return self.ids[:, : self.length]

    def reorder(self, rows: Tensor) -> None:
        super().reorder(rows)
        self.ids = self.ids[rows]

    def drop_padding(self) -> None:
        before = self.length
        super().drop_padding()
        self.ids[:, : self.length] = self.ids[:, before - self.length : before].clone()


class Model(llama.Model):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        rows = (config.ngram_order - 1) * config.ngram_buckets
        self.ngrams = Embedding(rows, config.d_model)
        if not self.ngrams.weight.is_meta:
            nn.init.zeros_(self.ngrams.weight)

    def embed_tokens(self, input_ids: Tensor, view: View, cache: Cache | None) -> Tensor:
        """Token embedding plus one hashed vector an order: [B, T] → [B, T, D].

        Position p has p tokens before it, whatever its column; further back lies empty space.
        """
        length, buckets = input_ids.shape[1], self.config.ngram_buckets
        x = super().embed_tokens(input_ids, view, cache)
        ids = input_ids
        if isinstance(cache, RememberingCache):
            ids = cache.remember(ids)
        ids = F.pad(ids + 1, (self.config.ngram_order - 1, 0))  # 0 is the empty space
        total = ids.shape[1]
        key, rows = ids[:, -length:], []
        for order in range(self.config.ngram_order - 1):
            if view.layout is not None:
                earlier = view.layout.earlier(input_ids[0], order + 1)[None] + 1
            else:
                earlier = ids[:, total - length - order - 1 : total - order - 1]
            earlier = earlier.masked_fill(view.positions <= order, 0)
            key = (key * 31337 + earlier * (7919 + 2 * order)) % PRIME
            rows.append(key % buckets + order * buckets)
        return x + self.ngrams(torch.stack(rows), self.compute_dtype).sum(0)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        c = self.config
        device = self.head_weight.device
        return RememberingCache(
            c.n_layers, batch, c.n_kv_heads, c.head_dim, capacity, self.compute_dtype, device
        )


def count_parameters(config: Config) -> int:
    """Llama's parameters and the n-gram table."""
    table = (config.ngram_order - 1) * config.ngram_buckets * config.d_model
    return llama.count_parameters(config) + table


def flops_per_token(config: Config, seq_len: int) -> float:
    """As Llama's: a look-up is no matmul."""
    return llama.flops_per_token(config, seq_len)


HF_NAMES = (*llama.HF_NAMES, Weight("model.ngrams.weight", ("ngrams.weight",)))
HF_TIED = llama.HF_TIED
HF_PREFIX = llama.HF_PREFIX
HF_IGNORED = llama.HF_IGNORED


def to_hf_config(config: Config) -> dict[str, Any]:
    """Llama's fields and our own."""
    return llama.to_hf_config(config) | {
        "architectures": ["HashgramForCausalLM"],
        "model_type": HF_MODEL_TYPES[0],
        "qk_norm": config.qk_norm,
        "sliding_window": config.sliding_window,
        "ngram_order": config.ngram_order,
        "ngram_buckets": config.ngram_buckets,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    base = llama.from_hf_config({**hf, "model_type": "llama"}).model_dump()
    own = ("qk_norm", "sliding_window", "ngram_order", "ngram_buckets")
    return Config(**(base | {name: hf[name] for name in own if name in hf}))
