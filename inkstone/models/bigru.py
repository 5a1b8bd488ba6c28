"""GRU readers of texts: `bilstm` with the cell of Cho et al. 2014.

Three maps instead of four and no cell state; classifies texts and tags words with their characters.
"""

from __future__ import annotations

from typing import Any

from inkstone.models import _base, _recurrent
from inkstone.models._weights import Weight
from inkstone.nn.recurrent import GRU

KIND = "encoder"
HF_MODEL_TYPES = ("inkstone_bigru",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.EncoderConfig):
    """Shape of a GRU reader."""


PRESETS: dict[str, Config] = {}


class Model(_recurrent.TextReader):
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
    return _recurrent.to_hf_config(config, "bigru")


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**_recurrent.own_fields(hf, Config))
