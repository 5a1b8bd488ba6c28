"""GRU language models: "Learning Phrase Representations using RNN …" (Cho et al. 2014).

Two gates and no cell state (section 2.3, eq. 5 to 8):

    r, z = σ(W x + U h' + b)
    n = tanh(W x + r ⊙ (U h' + b') + b)
    h = (1 − z) ⊙ n + z ⊙ h'

with r behind the recurrent map, as cuDNN and torch have it: one matmul a step.
"""

from __future__ import annotations

from inkstone.models import _recurrent
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


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "gru", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
