"""Marian: the Transformer of the translation models of OPUS-MT (Junczys-Dowmunt et al. 2018).

The network of 2017 with another activation, and a constant on every word's score; its decoder
begins with the padding token.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from inkstone.models import _base, transformer

KIND = "seq2seq"
HF_MODEL_TYPES = ("marian",)


class Config(transformer.Config):
    """Shape of a Marian; the defaults are those of opus-mt-en-de."""

    vocab_size: int = Field(default=58101, ge=1, le=1 << 22)
    activation: Literal["relu", "gelu", "swish"] = "swish"
    start_id: int = Field(default=58100, ge=0, le=1 << 22)


PRESETS = {"opus-mt-en-de": Config()}


class Model(transformer.Model):
    """The whole network."""

    logits_bias = True


def count_parameters(config: Config) -> int:
    """Exact count; the constants on the words' scores are not trained."""
    return _base.count(Model, config)


flops_per_token = transformer.flops_per_token
HF_NAMES, HF_COUNTS = transformer.HF_NAMES, transformer.HF_COUNTS
HF_TIED, HF_PREFIX = transformer.HF_TIED, transformer.HF_PREFIX
HF_OPTIONAL = transformer.HF_OPTIONAL
HF_IGNORED = (r"model\.(en|de)coder\.embed_positions\.weight",)  # old uploads store the waves


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as MarianMTModel reads it."""
    return transformer.to_hf_config(config) | {"inkstone_family": "marian"}


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`; errors as in `transformer.from_hf_config`."""
    defaults = {"decoder_start_token_id": 58100}
    return Config(**transformer.from_hf_config({**defaults, **hf}).model_dump())
