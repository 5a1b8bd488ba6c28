"""LSTM language models: Hochreiter & Schmidhuber 1997, Gers et al. 2000, Merity et al. 2017.

A cell state c that is added to instead of multiplied (1997, section 4), a gate that forgets
(2000, section 3):

    i, f, o = σ(W x + U h' + b)    g = tanh(W x + U h' + b)
    c = f ⊙ c' + i ⊙ g             h = o ⊙ tanh(c)

The AWD-LSTM ("Regularizing and Optimizing LSTM Language Models") adds no layer: it is DropConnect
on U, dropout whose mask stays for all steps, dropout of whole words, two penalties on h, and words
that share the embedding with the head. Its optimizer here is the library's.
"""

from __future__ import annotations

from inkstone.models import _recurrent
from inkstone.nn.recurrent import LSTM

KIND = "causal"
HF_MODEL_TYPES = ("inkstone_lstm",)
SHAPES = _recurrent.SHAPES


class Config(_recurrent.Config):
    """Shape and regularisation of an LSTM language model."""


PRESETS = {
    "awd-lstm-wikitext2": Config(  # Merity et al. 2017, section 5
        vocab_size=33278, d_model=400, n_layers=3, hidden_size=1150, dropout=0.4,
        input_dropout=0.65, hidden_dropout=0.2, embed_dropout=0.1, weight_drop=0.5, ar=2.0, tar=1.0,
        head_scale=1.0,
    )
}  # fmt: skip


class Model(_recurrent.LanguageModel):
    """The whole network; the cell's formula is `nn.recurrent.LSTM`."""

    CELL = LSTM
    config: Config


count_parameters, flops_per_token, hf_names, to_hf_config, from_hf_config = _recurrent.functions(
    "lstm", Config, Model
)
HF_TIED, HF_PREFIX, HF_IGNORED = _recurrent.HF_TIED, _recurrent.HF_PREFIX, _recurrent.HF_IGNORED
