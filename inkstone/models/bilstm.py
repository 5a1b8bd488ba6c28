"""LSTM readers of texts: classifiers, and taggers that look at the letters.

Two directions (Graves & Schmidhuber 2005) whose states stand side by side. For tagging, a word is
its embedding beside what a small bidirectional LSTM says of its characters (Lample et al. 2016,
section 4.1), so that words never seen have a shape. With `directions = 1` and the state behind the
last word it is the classifier of the textbooks.
"""

from __future__ import annotations

from typing import Any

from inkstone.models import _base, _recurrent
from inkstone.models._weights import Weight
from inkstone.nn.recurrent import LSTM

KIND = "encoder"
HF_MODEL_TYPES = ("inkstone_bilstm",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.EncoderConfig):
    """Shape of an LSTM reader."""


PRESETS: dict[str, Config] = {}


class Model(_recurrent.TextReader):
    """The whole network; the cell's formula is `nn.recurrent.LSTM`."""

    CELL = LSTM
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
    return _recurrent.to_hf_config(config, "bilstm")


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**_recurrent.own_fields(hf, Config))
