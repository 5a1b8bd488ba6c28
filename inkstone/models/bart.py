"""BART: "Denoising Sequence-to-Sequence Pre-training" (Lewis et al. 2020).

The Transformer of 2017 with GELU, learned positions and a norm on the embeddings (section 2.1).
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from inkstone.models import _base, transformer

KIND = "seq2seq"
START = "eos"  # what its decoder begins with when it is pre-trained
HF_MODEL_TYPES = ("bart",)


class Config(transformer.Config):
    """Shape of a BART; the defaults are bart-base."""

    vocab_size: int = Field(default=50265, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=1024, ge=1, le=1 << 24)
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    n_heads: int = Field(default=12, ge=1, le=4096)
    activation: Literal["relu", "gelu", "swish"] = "gelu"
    positions: Literal["sinusoidal", "learned"] = "learned"
    scale_embedding: bool = False
    embedding_norm: bool = True
    start_id: int = Field(default=2, ge=0, le=1 << 22)


PRESETS = {
    "bart-base": Config(),
    "bart-large": Config(d_model=1024, n_layers=12, n_heads=16),
}


class Model(transformer.Model):
    """The whole network."""

    first_position = 2  # the authors' code keeps two rows for padding
    logits_bias = True


def count_parameters(config: Config) -> int:
    """Exact count; the constants on the words' scores are not trained."""
    return _base.count(Model, config)


flops_per_token = transformer.flops_per_token
HF_NAMES, HF_COUNTS = transformer.HF_NAMES, transformer.HF_COUNTS
HF_TIED, HF_PREFIX = transformer.HF_TIED, transformer.HF_PREFIX
HF_OPTIONAL = transformer.HF_OPTIONAL
HF_IGNORED: tuple[str, ...] = ()


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as BartForConditionalGeneration reads it."""
    hf = transformer.to_hf_config(config)
    del hf["decoder_vocab_size"], hf["share_encoder_decoder_embeddings"]
    return hf | {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "inkstone_family": "bart",
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`; errors as in `transformer.from_hf_config`."""
    defaults = {
        "vocab_size": 50265, "decoder_start_token_id": 2, "positions": "learned",
        "embedding_norm": True,
    }  # fmt: skip
    return Config(**transformer.from_hf_config({**defaults, **hf}).model_dump())
