"""A Llama-style decoder whose inputs also carry hashed n-grams.

Each position adds, to its token's embedding, one learned vector for each of the last 2, 3, … n
tokens, found by hashing (Byte Latent Transformer, Pagnoni et al. 2024, §3.2.1, eq. 2-4). Looking up
costs no matmul, so for characters and bytes it buys in seconds what layers take minutes to learn.
The folder it is saved as opens in Inkstone only: no other library knows the family.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from inkstone.models import llama
from inkstone.nn.cache import KVCache

KIND = "causal"
MODEL_TYPES = ("inkstone_hashgram",)
ARCHITECTURE = {"inkstone_hashgram": "HashgramForCausalLM"}
PRIME = 1000003  # a prime below 2^20: the running hash stays far inside int64


class Config(llama.Config):
    """A Llama shape and its n-gram tables."""

    ngram_order: int = Field(4, ge=2, le=16)
    ngram_buckets: int = Field(16384, ge=16, le=2**24)


PRESETS: dict[str, Config] = {}


def count_parameters(config: Config) -> int:
    """Llama's parameters and one table for each order from 2 on."""
    tables = (config.ngram_order - 1) * config.ngram_buckets * config.d_model
    return llama.count_parameters(config) + tables


def flops_per_token(config: Config, seq_len: int) -> float:
    """As Llama's: a look-up is no matmul."""
    return llama.flops_per_token(config, seq_len)


class Model(llama.Model):
    """A Llama-style language model with hashed n-gram embeddings."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.ngrams = nn.ModuleList(
            nn.Embedding(config.ngram_buckets, config.d_model)
            for _ in range(config.ngram_order - 1)
        )
        for table in self.ngrams:
            nn.init.zeros_(table.weight)

    def embed_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        """Token embedding plus one hashed vector an order; [B, T] → [B, T, D]."""
        length = input_ids.shape[1]
        x = self.embed(input_ids)
        ids = input_ids
        if attention_mask is not None:  # padding must hash like the empty space before a text
            ids = ids.masked_fill(~attention_mask[:, -length:].bool(), 0)
        if cache is not None:
            ids = cache.remember(ids)
        total = ids.shape[1]
        key = ids
        for n, table in enumerate(self.ngrams, start=1):
            earlier = F.pad(ids, (n, 0))[:, :total]
            key = (key * 31337 + (earlier + 1) * (7919 + 2 * n)) % PRIME
            x = x + table(key[:, -length:] % self.config.ngram_buckets)
        return x

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        groups = super().param_groups()
        groups["embedding"] += list(self.ngrams.parameters())
        return groups


def hf_names(config: Config) -> dict[str, tuple[str, bool]]:
    """Llama's names, and `model.ngrams.{n}.weight`."""
    tables = range(config.ngram_order - 1)
    own = {f"ngrams.{n}.weight": (f"model.ngrams.{n}.weight", False) for n in tables}
    return llama.hf_names(config) | own


def to_hf_config(config: Config) -> dict[str, Any]:
    """Llama's fields and our own."""
    return llama.to_hf_config(config) | {
        "model_type": MODEL_TYPES[0],
        "qk_norm": config.qk_norm,
        "sliding_window": config.sliding_window,
        "ngram_order": config.ngram_order,
        "ngram_buckets": config.ngram_buckets,
    }


def from_hf_config(raw: dict[str, Any]) -> Config:
    """Read a `config.json` that `to_hf_config` wrote."""
    base = llama.from_hf_config(raw).model_dump()
    base |= {"qk_norm": raw.get("qk_norm", False), "sliding_window": raw.get("sliding_window")}
    return Config(**base, ngram_order=raw["ngram_order"], ngram_buckets=raw["ngram_buckets"])
