"""BERT: "Pre-training of Deep Bidirectional Transformers …" (Devlin et al. 2019).

Post-norm Transformer blocks (Vaswani et al. 2017) that see both ways; token, position and segment
embeddings (figure 2); heads for masked words and next sentences (section 3.1) and for labels of
texts, of tokens and of spans (figure 4). Padding is never computed. Shapes: B batch, T time, N
tokens without padding, D d_model, H heads, E head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models import _base
from inkstone.models._encoder import CLASSES, Encoder, Head, hf_head, hf_labels
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend_once, attend_packed
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.norms import LayerNorm
from inkstone.nn.packed import in_runs, project
from inkstone.nn.packing import Packing
from inkstone.nn.pointwise import dropout

KIND = "encoder"
HF_MODEL_TYPES = ("bert",)


class Config(Section):
    """Shape of a BERT; the defaults are bert-base-uncased."""

    vocab_size: int = Field(default=30522, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=512, ge=1, le=1 << 24)
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    n_layers: int = Field(default=12, ge=1, le=1024)
    n_heads: int = Field(default=12, ge=1, le=4096)
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 4 · d_model")
    n_token_types: int = Field(default=2, ge=0, le=1024)
    first_position: int = Field(default=0, ge=0, le=1024, description="row of the first position")
    dropout: float = Field(default=0.1, ge=0.0, lt=1.0, description="embedding and residuals")
    norm_eps: float = Field(default=1e-12, gt=0.0, le=1.0)
    head: Head = "mlm"
    pooler: bool = Field(default=False, description="keep the pooler although head is none or mlm")
    n_labels: int = Field(default=2, ge=1, le=1 << 20)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        filled = dict(values)
        d_model = values.get("d_model", cls.model_fields["d_model"].default)
        if not values.get("d_ff") and isinstance(d_model, int):
            filled["d_ff"] = 4 * d_model
        if values.get("head", "mlm") not in ("none", "mlm"):  # it has one or none of its own
            filled["pooler"] = False
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        return self

    @property
    def head_dim(self) -> int:
        """E."""
        return self.d_model // self.n_heads


PRESETS = {
    "bert-base": Config(),
    "bert-large": Config(d_model=1024, n_layers=24, n_heads=16),
    "bert-base-cased": Config(vocab_size=28996),
    "bert-base-chinese": Config(vocab_size=21128),
    "minilm-l6": Config(d_model=384, n_layers=6, n_heads=12, head="none", pooler=True),
}


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        d_model = config.d_model
        self.n_heads, self.dropout = config.n_heads, config.dropout
        self.q = Linear(d_model, d_model, bias=True)
        self.k = Linear(d_model, d_model, bias=True)
        self.v = Linear(d_model, d_model, bias=True)
        self.o = Linear(d_model, d_model, bias=True)
        self.attention_norm = LayerNorm(d_model, config.norm_eps)
        self.up = Linear(d_model, config.d_ff, bias=True)
        self.down = Linear(config.d_ff, d_model, bias=True)
        self.mlp_norm = LayerNorm(d_model, config.norm_eps)

    def forward(
        self, x: Tensor, packing: Packing, view: View, first: Tensor | None = None
    ) -> Tensor:
        """[N, D] → [N, D]; with `first` [B], places of the first tokens, those alone: [B, D]."""
        attended = self.attention(x, packing, view, first)
        x = x if first is None else x[first]
        x = self.attention_norm.of_sum(x, self._drop(attended))
        return in_runs(self.feed_forward, x, self.up)

    def attention(
        self, x: Tensor, packing: Packing, view: View, first: Tensor | None = None
    ) -> Tensor:
        """Multi-head self-attention in both directions: [N, D] → [N, D], or [B, D] as `forward`."""
        if first is None:
            qkv = project(x, (self.q, self.k, self.v)).unflatten(-1, (3, self.n_heads, -1))
            q, k, v = qkv.unbind(1)
            attended = attend_packed(q, k, v, packing, view)
        else:
            q = project(x[first], [self.q]).unflatten(-1, (self.n_heads, -1))
            attended = attend_once(q, x, self.k, self.v, packing, view)
        return project(attended, [self.o])

    def feed_forward(self, x: Tensor) -> Tensor:
        """norm(x + mlp(x)), two linear maps around a GELU (section A.2): [N, D] → [N, D]."""
        mapped = project(project(x, [self.up], gelu=True), [self.down])
        return self.mlp_norm.of_sum(x, self._drop(mapped))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class Model(Encoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        d_model, head = config.d_model, config.head
        self.embed = Embedding(config.vocab_size, d_model)
        self.position = Embedding(config.first_position + config.max_seq_len, d_model)
        self.token_type = Embedding(config.n_token_types, d_model) if config.n_token_types else None
        self.embed_norm = LayerNorm(d_model, config.norm_eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        if head in ("pretraining", "sequence") or config.pooler:
            self.pooler = Linear(d_model, d_model, bias=True)
        if head in ("mlm", "pretraining"):
            self.prediction = Linear(d_model, d_model, bias=True)
            self.prediction_norm = LayerNorm(d_model, config.norm_eps)
            self.prediction_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if head == "pretraining":
            self.next_sentence = Linear(d_model, 2, bias=True)
        if head in ("sequence", "token"):
            self.classifier = Linear(d_model, config.n_labels, bias=True)
        if head == "span":
            self.span = Linear(d_model, 2, bias=True)
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """N(0, 0.02) for matrices and tables, zero for biases (github.com/google-research/bert)."""
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:
                p.normal_(0.0, 0.02)
            elif name.endswith("bias"):
                p.zero_()

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Packing]:
        """Last states of the tokens alone, [N, D], and where they belong."""
        x, packing, view = self._embedded(input_ids, attention_mask, token_types)
        for block in self.blocks:
            x = self.run(block, x, packing, view)
        return x, packing

    def text_states(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> Tensor:
        """`pooled` of the last states, of which the last block makes no others: [B, D]."""
        x, packing, view = self._embedded(input_ids, attention_mask, token_types)
        for block in self.blocks[:-1]:
            x = self.run(block, x, packing, view)
        return self.pool(self.run(self.blocks[-1], x, packing, view, packing.first()))

    def _embedded(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Packing, View]:
        """What the first block reads: [N, D]."""
        packing, view = self.layout(input_ids, attention_mask)
        positions = packing.pack(view.positions.expand_as(input_ids)) + self.config.first_position
        x = self.embed(packing.pack(input_ids), self.compute_dtype)
        x = x + self.position(positions, self.compute_dtype)
        if self.token_type is not None:
            types = torch.zeros_like(input_ids) if token_types is None else token_types
            x = x + self.token_type(packing.pack(types), self.compute_dtype)
        return self._drop(self.embed_norm(x)), packing, view

    def prediction_states(self, x: Tensor) -> Tensor:
        """What the words are scored from: [N, D] → [N, D]."""
        return self.prediction_norm(project(x, [self.prediction], gelu=True))

    def pooled(self, x: Tensor, packing: Packing) -> Tensor:
        """`pool` of the first token of each row: [N, D] → [B, D]."""
        return self.pool(x[packing.first()])

    def pool(self, first: Tensor) -> Tensor:
        """tanh of a linear map of the first token, [CLS] (section 3.1): [B, D] → [B, D]."""
        return torch.tanh(self.pooler(first))

    @property
    def head_bias(self) -> Tensor | None:
        """[V]."""
        return self.prediction_bias


def count_parameters(config: Config) -> int:
    """Exact count; words are scored with the embedding and add only a bias."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; training takes three times as many.

    Of the heads only the one over words counts, and it as if every token were predicted. Where
    texts are labelled the last block does nothing, but for the first token.
    """
    d, f = config.d_model, config.d_ff
    words = d * d + config.vocab_size * d if config.head in ("mlm", "pretraining") else 0
    whole = config.n_layers - (config.head == "sequence")
    matmuls = whole * (4 * d * d + 2 * d * f) + words
    attention = whole * 2 * (2 * seq_len * d)  # q·k, then weights·v
    return 2.0 * matmuls + attention


def block_names(theirs: str, names: dict[str, str]) -> tuple[Weight, ...]:
    """Weights and biases of a block, in the order of our own names for them."""
    return tuple(
        Weight(f"{theirs}.{{i}}.{name}.{part}", (f"blocks.{{i}}.{ours}.{part}",))
        for ours, name in names.items()
        for part in ("weight", "bias")
    )


def both(theirs: str, ours: str) -> tuple[Weight, Weight]:
    """Weight and bias of one layer."""
    return Weight(f"{theirs}.weight", (f"{ours}.weight",)), Weight(
        f"{theirs}.bias", (f"{ours}.bias",)
    )


BLOCK_NAMES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "mlp_norm": "output.LayerNorm",
}
HF_NAMES = (
    Weight("bert.embeddings.word_embeddings.weight", ("embed.weight",)),
    Weight("bert.embeddings.position_embeddings.weight", ("position.weight",)),
    Weight("bert.embeddings.token_type_embeddings.weight", ("token_type.weight",)),
    *both("bert.embeddings.LayerNorm", "embed_norm"),
    *block_names("bert.encoder.layer", BLOCK_NAMES),
    *both("bert.pooler.dense", "pooler"),
    *both("cls.predictions.transform.dense", "prediction"),
    *both("cls.predictions.transform.LayerNorm", "prediction_norm"),
    Weight("cls.predictions.bias", ("prediction_bias",)),
    *both("cls.seq_relationship", "next_sentence"),
    *both("classifier", "classifier"),
    *both("qa_outputs", "span"),
)
HF_TIED = {
    "cls.predictions.decoder.weight": "embed.weight",
    "cls.predictions.decoder.bias": "prediction_bias",
}
HF_PREFIX = "bert."
HF_IGNORED = (r"(bert\.)?embeddings\.position_ids",)
HF_RENAMED = (  # old uploads
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as the Bert classes of transformers read it."""
    return {
        "architectures": ["Bert" + CLASSES[config.head]],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "type_vocab_size": config.n_token_types,
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": config.norm_eps,
        "initializer_range": 0.02,
        "position_embedding_type": "absolute",
        "tie_word_embeddings": True,
        **hf_labels(config.n_labels),
    }


def from_hf_config(hf: dict[str, Any], prefix: str = "Bert") -> Config:
    """Our shape from their `config.json`, whose class begins with `prefix`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    wanted = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
    for key, value in wanted.items():
        if hf.get(key, value) != value:
            raise ModelError(f"config.json: {key} = {hf[key]!r} is not supported for bert")
    head, n_labels = hf_head(hf, prefix)
    return Config(
        vocab_size=hf.get("vocab_size", 30522),
        max_seq_len=hf.get("max_position_embeddings", 512),
        d_model=hf.get("hidden_size", 768),
        n_layers=hf.get("num_hidden_layers", 12),
        n_heads=hf.get("num_attention_heads", 12),
        d_ff=hf.get("intermediate_size", 3072),
        n_token_types=hf.get("type_vocab_size", 2),
        dropout=hf.get("hidden_dropout_prob", 0.1),
        norm_eps=hf.get("layer_norm_eps", 1e-12),
        head=head,
        n_labels=n_labels,
    )


def fit_config(config: Config, names: set[str]) -> Config:
    """Parts that only the weights tell: a pooler, and both pre-training heads under one's name."""
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    head = config.head
    if head == "mlm" and pooler and "cls.seq_relationship.weight" in names:
        head = "pretraining"  # as Google's own upload
    return config.model_copy(update={"head": head, "pooler": pooler and head in ("none", "mlm")})
