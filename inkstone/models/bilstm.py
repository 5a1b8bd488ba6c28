"""LSTM readers of texts: classifiers, and taggers that look at the letters.

Two directions (Graves & Schmidhuber 2005) whose states stand side by side. For tagging, a word is
its embedding beside what a small bidirectional LSTM says of its characters (Lample et al. 2016,
section 4.1), so that words never seen have a shape. With `directions = 1` and the state behind the
last word it is the classifier of the textbooks.
"""

from __future__ import annotations

from inkstone.models import _recurrent
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


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "bilstm", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
