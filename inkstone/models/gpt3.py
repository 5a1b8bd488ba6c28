"""GPT-3: "Language Models are Few-Shot Learners" (Brown et al. 2020).

GPT-2's network, in which every other layer attends to a band of the last tokens only ("alternating
dense and locally banded sparse attention patterns", section 2.1; Child et al. 2019, section 4). The
paper does not tell the width of the band; 256 is GPT-Neo's.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from inkstone.models import gpt2

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_gpt3", "gpt2")


class Config(gpt2.Config):
    """Shape of a GPT-3; the defaults are the smallest published one (125M parameters)."""

    max_seq_len: int = Field(default=2048, ge=1, le=1 << 24)
    band: int | None = Field(
        default=256, ge=1, le=1 << 24, description="tokens that odd layers see; None: all"
    )


# Table 2.1. Two of its rows do not add up (24 heads of 128 in d_model 2048; 40 of 128 in 5140);
# the heads of XL and the width of 13B are those that do, and give the sizes it names.
PRESETS = {
    "gpt3-small": Config(),
    "gpt3-medium": Config(d_model=1024, n_layers=24, n_heads=16),
    "gpt3-large": Config(d_model=1536, n_layers=24, n_heads=16),
    "gpt3-xl": Config(d_model=2048, n_layers=24, n_heads=16),
    "gpt3-2.7b": Config(d_model=2560, n_layers=32, n_heads=32),
    "gpt3-6.7b": Config(d_model=4096, n_layers=32, n_heads=32),
    "gpt3-13b": Config(d_model=5120, n_layers=40, n_heads=40),
    "gpt3-175b": Config(d_model=12288, n_layers=96, n_heads=96),
}


class Model(gpt2.Model):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    @property
    def bands(self) -> tuple[int | None, ...]:
        """Even layers see everything before a token, odd ones the band."""
        return (None, self.config.band)


count_parameters = gpt2.count_parameters


def flops_per_token(config: Config, seq_len: int) -> float:
    """As GPT-2's, less what the band spares in every other layer."""
    whole = gpt2.flops_per_token(config, seq_len)
    band = min(config.band or seq_len, seq_len)
    seen = (band * (band + 1) / 2 + (seq_len - band) * band) / seq_len
    return whole - (config.n_layers // 2) * 4 * config.d_model * ((seq_len + 1) / 2 - seen)


HF_NAMES, HF_TIED = gpt2.HF_NAMES, gpt2.HF_TIED
HF_PREFIX, HF_IGNORED = gpt2.HF_PREFIX, gpt2.HF_IGNORED


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`: without a band it is a GPT-2, and opens as one; with one, in Inkstone only."""
    hf = gpt2.to_hf_config(config) | {"inkstone_family": "gpt3", "band": config.band}
    if config.band is not None:
        hf |= {"architectures": ["Gpt3ForCausalLM"], "model_type": HF_MODEL_TYPES[0]}
    return hf


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**gpt2.from_hf_config(hf).model_dump(), band=hf.get("band"))
