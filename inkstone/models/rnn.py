"""Elman's network as a language model: "Finding Structure in Time" (Elman 1990).

The hidden units see the word and their own values one step earlier (figure 2):
h = tanh(W x + U h' + b), words are scored from h (Mikolov et al. 2010). What it can remember is
what survives the multiplication with U at every step; `lstm` and `gru` are the answers to that.
"""

from __future__ import annotations

from typing import Any

from inkstone.models import _base, _recurrent
from inkstone.models._weights import Weight
from inkstone.nn.recurrent import RNN

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_rnn",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.Config):
    """Shape of an Elman language model."""


PRESETS: dict[str, Config] = {}


class Model(_recurrent.LanguageModel):
    """The whole network; the cell's formula is `nn.recurrent.RNN`."""

    CELL = RNN
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
    return _recurrent.to_hf_config(config, "rnn")


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**_recurrent.own_fields(hf, Config))
