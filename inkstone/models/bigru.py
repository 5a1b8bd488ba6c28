"""GRU readers of texts: `bilstm` with the cell of Cho et al. 2014.

Three maps instead of four and no cell state; classifies texts and tags words with their characters.
"""

from __future__ import annotations

from inkstone.models import _recurrent
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


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "bigru", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
