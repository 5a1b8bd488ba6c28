"""Elman's network reading both ways: "Bidirectional Recurrent Neural Networks".

Schuster & Paliwal 1997: one network reads forwards, one backwards, and what is said of a word is
said from both states. Classifies texts and tags words.
"""

from __future__ import annotations

from inkstone.models import _recurrent
from inkstone.nn.recurrent import RNN

KIND = "encoder"
HF_MODEL_TYPES = ("inkstone_birnn",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.EncoderConfig):
    """Shape of a bidirectional Elman network."""


PRESETS: dict[str, Config] = {}


class Model(_recurrent.TextReader):
    """The whole network; the cell's formula is `nn.recurrent.RNN`."""

    CELL = RNN
    config: Config


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "birnn", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
