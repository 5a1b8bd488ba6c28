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

from typing import Any

from inkstone.models import _base, _recurrent
from inkstone.models._weights import Weight
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
    )
}  # fmt: skip


class Model(_recurrent.LanguageModel):
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
    return _recurrent.to_hf_config(config, "lstm")


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from a `config.json` that `to_hf_config` wrote."""
    return Config(**_recurrent.own_fields(hf, Config))
