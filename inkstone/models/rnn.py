"""Elman's network as a language model: "Finding Structure in Time" (Elman 1990).

The hidden units see the word and their own values one step earlier (figure 2):
h = tanh(W x + U h' + b), words are scored from h (Mikolov et al. 2010). What it can remember is
what survives the multiplication with U at every step; `lstm` and `gru` are the answers to that.
"""

from __future__ import annotations

from inkstone.models import _recurrent
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


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "rnn", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
