"""GRU language models: "Learning Phrase Representations using RNN …" (Cho et al. 2014).

Two gates and no cell state (section 2.3, eq. 5 to 8):

    r, z = σ(W x + U h' + b)
    n = tanh(W x + r ⊙ (U h' + b') + b)
    h = (1 − z) ⊙ n + z ⊙ h'

with r behind the recurrent map, as cuDNN and torch have it: one matmul a step.
"""

from __future__ import annotations

from typing import Any

from inkstone.models import _base, _recurrent
from inkstone.models._weights import Weight
from inkstone.nn.recurrent import GRU

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_gru",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.Config):
    """Shape of a GRU language model."""


PRESETS: dict[str, Config] = {}


class Model(_recurrent.LanguageModel):
    """The whole network; the cell's formula is `nn.recurrent.GRU`."""

    CELL = GRU
    config: Config


def count_parameters(config: Config) -> int:
    """Exact count."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; training takes three times that."""
    return _recurrent.flops_per_token(config, Model)


def hf_names(config: Config) -> tuple[Weight, ...]:
    """Every weight under its own name."""
    return _recurrent.weight_names(config, Model)


HF_TIED: dict[str, str] = {}
HF_PREFIX = ""
HF_IGNORED: tuple[str, ...] = ()


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json`, which opens in Inkstone only."""
    return _recurrent.to_hf_config(config, "gru")


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**_recurrent.own_fields(hf, Config))
