"""RoBERTa: "A Robustly Optimized BERT Pretraining Approach" (Liu et al. 2019).

BERT's network; what differs is the training (section 4: longer, dynamic masking, no next-sentence
objective) and with it a byte-level vocabulary, no segments, and positions that begin behind the
row of the padding token, as in the authors' code (github.com/facebookresearch/fairseq).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from inkstone.models import _base, bert
from inkstone.models._encoder import CLASSES
from inkstone.models._weights import Weight
from inkstone.models.bert import both

KIND = "encoder"
TOKENIZER = "bpe"  # what it was published with
HF_MODEL_TYPES = ("roberta",)


class Config(bert.Config):
    """Shape of a RoBERTa; the defaults are roberta-base."""

    vocab_size: int = Field(default=50265, ge=1, le=1 << 22)
    n_token_types: int = Field(default=1, ge=0, le=1024)
    first_position: int = Field(default=2, ge=0, le=1024, description="row of the first position")
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)


PRESETS = {
    "roberta-base": Config(),
    "roberta-large": Config(d_model=1024, n_layers=24, n_heads=16),
}


class Model(bert.Model):
    """As BERT's; the head over texts is called otherwise and is the same."""


def count_parameters(config: Config) -> int:
    """Exact count."""
    return _base.count(Model, config)


flops_per_token = bert.flops_per_token

HF_TIED = {"lm_head.decoder.weight": "embed.weight", "lm_head.decoder.bias": "prediction_bias"}
HF_PREFIX = "roberta."
HF_IGNORED = (r"(roberta\.)?embeddings\.position_ids",)


def hf_names(config: Config) -> tuple[Weight, ...]:
    """The heads' names: over texts two layers are called `classifier`, over tokens one."""
    body = (row for row in bert.HF_NAMES if row.theirs.startswith("bert."))
    names = [Weight(row.theirs.replace("bert.", "roberta.", 1), row.ours) for row in body]
    if config.head == "sequence":
        names = [row for row in names if "pooler" not in row.theirs]
        names += both("classifier.dense", "pooler")
        names += both("classifier.out_proj", "classifier")
    else:
        names += both("classifier", "classifier")
    names += both("qa_outputs", "span")
    names += both("lm_head.dense", "prediction")
    names += both("lm_head.layer_norm", "prediction_norm")
    return (*names, Weight("lm_head.bias", ("prediction_bias",)))


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as the Roberta classes of transformers read it."""
    return bert.to_hf_config(config) | {
        "architectures": ["Roberta" + CLASSES[config.head]],
        "model_type": "roberta",
        "max_position_embeddings": config.first_position + config.max_seq_len,
        "pad_token_id": config.first_position - 1,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`; errors as in `bert.from_hf_config`."""
    first = (hf["pad_token_id"] if hf.get("pad_token_id") is not None else 1) + 1
    defaults = {"vocab_size": 50265, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    shape = bert.from_hf_config({**defaults, **hf}, "Roberta").model_dump()
    positions = hf.get("max_position_embeddings", 514)
    return Config(**(shape | {"first_position": first, "max_seq_len": positions - first}))


fit_config = bert.fit_config
