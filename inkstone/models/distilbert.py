"""DistilBERT: "a distilled version of BERT" (Sanh et al. 2019).

BERT with half of the layers and without segments and pooler (section 2); the head over texts has
a ReLU where BERT's pooler has a tanh.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.models import _base, bert
from inkstone.models._encoder import CLASSES, hf_head, hf_labels
from inkstone.models._weights import Weight
from inkstone.models.bert import block_names, both

KIND = "encoder"
HF_MODEL_TYPES = ("distilbert",)


class Config(bert.Config):
    """Shape of a DistilBERT; the defaults are distilbert-base-uncased."""

    n_layers: int = Field(default=6, ge=1, le=1024)
    n_token_types: int = Field(default=0, ge=0, le=1024)


PRESETS = {"distilbert-base": Config()}


class Model(bert.Model):
    """As BERT's, with a ReLU in the head over texts."""

    def pool(self, first: Tensor) -> Tensor:
        """ReLU of a linear map of the first token: [B, D] → [B, D]."""
        return torch.relu(self.pooler(first))


def count_parameters(config: Config) -> int:
    """Exact count."""
    return _base.count(Model, config)


flops_per_token = bert.flops_per_token

BLOCK_NAMES = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "up": "ffn.lin1",
    "down": "ffn.lin2",
    "mlp_norm": "output_layer_norm",
}
HF_NAMES = (
    Weight("distilbert.embeddings.word_embeddings.weight", ("embed.weight",)),
    Weight("distilbert.embeddings.position_embeddings.weight", ("position.weight",)),
    *both("distilbert.embeddings.LayerNorm", "embed_norm"),
    *block_names("distilbert.transformer.layer", BLOCK_NAMES),
    *both("vocab_transform", "prediction"),
    *both("vocab_layer_norm", "prediction_norm"),
    Weight("vocab_projector.bias", ("prediction_bias",)),
    *both("pre_classifier", "pooler"),
    *both("classifier", "classifier"),
    *both("qa_outputs", "span"),
)
HF_TIED = {"vocab_projector.weight": "embed.weight"}
HF_PREFIX = "distilbert."
HF_IGNORED = (r"(distilbert\.)?embeddings\.position_ids",)


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as the DistilBert classes of transformers read it.

    Raises:
        ModelError: The shape has what only BERT has.
    """
    if config.head == "pretraining" or config.n_token_types or config.norm_eps != 1e-12:
        raise ModelError("distilbert has no segments, no next-sentence head, and norm_eps 1e-12")
    return {
        "architectures": ["DistilBert" + CLASSES[config.head]],
        "model_type": "distilbert",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "dim": config.d_model,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "hidden_dim": config.d_ff,
        "activation": "gelu",
        "dropout": config.dropout,
        "attention_dropout": 0.0,
        "seq_classif_dropout": config.dropout,
        "qa_dropout": config.dropout,
        "sinusoidal_pos_embds": False,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        **hf_labels(config.n_labels),
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    if hf.get("activation", "gelu") != "gelu":
        raise ModelError(f"config.json: activation = {hf['activation']!r} is not supported")
    head, n_labels = hf_head(hf, "DistilBert")
    return Config(
        vocab_size=hf.get("vocab_size", 30522),
        max_seq_len=hf.get("max_position_embeddings", 512),
        d_model=hf.get("dim", 768),
        n_layers=hf.get("n_layers", 6),
        n_heads=hf.get("n_heads", 12),
        d_ff=hf.get("hidden_dim", 3072),
        dropout=hf.get("dropout", 0.1),
        head=head,
        n_labels=n_labels,
    )
