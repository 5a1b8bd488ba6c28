"""ModernBERT: "Smarter, Better, Faster, Longer" (Warner et al. 2024).

An encoder with what decoders have taught since BERT (section 2.1): pre-norm blocks without biases,
rotary positions, GeGLU, attention to a window of neighbours in all layers but every third, and no
padding anywhere. Shapes: B batch, T time, N tokens without padding, D d_model, H heads, E
head_dim, F d_ff, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.errors import ModelError
from inkstone.models import _base
from inkstone.models._base import scale_down
from inkstone.models._encoder import CLASSES, Encoder, Head, hf_head, hf_labels
from inkstone.models._weights import Weight
from inkstone.nn.attention import View, attend
from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.norms import LayerNorm
from inkstone.nn.packing import Packing
from inkstone.nn.rope import Rope, rotate

KIND = "encoder"
TOKENIZER = "bpe"  # what it was published with
HF_MODEL_TYPES = ("modernbert",)


class Config(Section):
    """Shape of a ModernBERT; the defaults are ModernBERT-base."""

    vocab_size: int = Field(default=50368, ge=1, le=1 << 22)
    max_seq_len: int = Field(default=8192, ge=1, le=1 << 24)
    d_model: int = Field(default=768, ge=1, le=1 << 16)
    n_layers: int = Field(default=22, ge=1, le=1024)
    n_heads: int = Field(default=12, ge=1, le=4096)
    d_ff: int = Field(default=0, ge=0, le=1 << 20, description="0: 3/2 · d_model")
    global_every: int = Field(default=3, ge=1, le=1024, description="layers 0, n, 2n … see all")
    window: int = Field(default=128, ge=2, le=1 << 24, description="neighbours seen elsewhere")
    global_theta: float = Field(default=160000.0, gt=0.0)
    local_theta: float = Field(default=10000.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="before labels")
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    head: Head = "mlm"
    pooling: str = Field(default="mean", pattern="^(cls|mean)$")
    n_labels: int = Field(default=2, ge=1, le=1 << 20)

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: dict[str, Any]) -> dict[str, Any]:
        filled = dict(values)
        d_model = values.get("d_model", cls.model_fields["d_model"].default)
        if not values.get("d_ff") and isinstance(d_model, int):
            filled["d_ff"] = max(1, 3 * d_model // 2)
        return filled

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.d_model % self.n_heads or self.head_dim % 2:
            raise ValueError(
                f"d_model {self.d_model} is not an even multiple of n_heads {self.n_heads}"
            )
        if self.head == "pretraining":
            raise ValueError("modernbert has no next-sentence head: use head mlm")
        return self

    @property
    def head_dim(self) -> int:
        """E."""
        return self.d_model // self.n_heads


PRESETS = {
    "modernbert-base": Config(),
    "modernbert-large": Config(d_model=1024, n_layers=28, n_heads=16, d_ff=2624),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the first has no norm before attention."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        d_model = config.d_model
        self.head_dim, self.n_heads = config.head_dim, config.n_heads
        self.attention_norm = LayerNorm(d_model, config.norm_eps, bias=False) if layer else None
        self.q = Linear(d_model, d_model)
        self.k = Linear(d_model, d_model)
        self.v = Linear(d_model, d_model)
        self.o = Linear(d_model, d_model)
        self.mlp_norm = LayerNorm(d_model, config.norm_eps, bias=False)
        self.gate = Linear(d_model, config.d_ff)
        self.up = Linear(d_model, config.d_ff)
        self.down = Linear(config.d_ff, d_model)

    def forward(
        self, x: Tensor, packing: Packing, view: View, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        """[N, D] → [N, D]; `angles` are the cosines and sines of the positions."""
        normed = x if self.attention_norm is None else self.attention_norm(x)
        x = x + self.attention(normed, packing, view, angles)
        return x + self.mlp(self.mlp_norm(x))

    def attention(
        self, x: Tensor, packing: Packing, view: View, angles: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Multi-head self-attention in both directions: [N, D] → [N, D]."""
        qkv = packing.unpack(stacked(x, (self.q, self.k, self.v))).unflatten(
            -1, (-1, self.head_dim)
        )
        qk, v = qkv.split((2 * self.n_heads, self.n_heads), dim=2)
        q, k = rotate(qk, *angles).split(self.n_heads, dim=2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # [B, H, T, E]
        return self.o(packing.pack(attend(q, k, v, view)))

    def mlp(self, x: Tensor) -> Tensor:
        """GeGLU (Shazeer 2020, equation 6): [N, D] → [N, D]."""
        gate, up = stacked(x, (self.gate, self.up)).chunk(2, dim=-1)
        return self.down(F.gelu(gate) * up)


class Model(Encoder):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        d_model = config.d_model
        self.embed = Embedding(config.vocab_size, d_model)
        self.embed_norm = LayerNorm(d_model, config.norm_eps, bias=False)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layers))
        self.norm = LayerNorm(d_model, config.norm_eps, bias=False)
        self.global_rope = Rope(config.head_dim, config.global_theta, config.max_seq_len)
        self.local_rope = Rope(config.head_dim, config.local_theta, config.max_seq_len)
        if config.head != "none":
            self.prediction = Linear(d_model, d_model)
            self.prediction_norm = LayerNorm(d_model, config.norm_eps, bias=False)
        if config.head == "mlm":
            self.prediction_bias = nn.Parameter(torch.zeros(config.vocab_size))
        if config.head in ("sequence", "token"):
            self.classifier = Linear(d_model, config.n_labels, bias=True)
        if config.head == "span":
            self.span = Linear(d_model, 2, bias=True)
        self.init()

    @property
    def period(self) -> int:
        """A layer that sees everything, then those that see their neighbours."""
        return self.config.global_every

    @torch.no_grad()
    def init(self) -> None:
        """N(0, 0.02), maps into the residual stream divided by √(2 · n_layers) (appendix A.2)."""
        for name, p in self.named_parameters():
            if p.ndim == 2 and not p.is_meta:
                p.normal_(0.0, 0.02)
            elif name.endswith("bias"):
                p.zero_()
        for block in self.blocks:
            assert isinstance(block, Block)
            scale_down(block.o, (2 * self.config.n_layers) ** 0.5)
            scale_down(block.down, (2 * self.config.n_layers) ** 0.5)

    def states(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_types: Tensor | None
    ) -> tuple[Tensor, Packing]:
        """Last states of the tokens alone, [N, D], and where they belong; segments are not used."""
        c = self.config
        packing, everywhere = self.layout(input_ids, attention_mask)
        _, nearby = self.layout(input_ids, attention_mask, c.window // 2)
        ropes = (self.global_rope, everywhere), (self.local_rope, nearby)
        (wide, near) = (
            (view, rope.tables(view.positions, view.length, self.compute_dtype))
            for rope, view in ropes
        )
        x = self.embed_norm(self.embed(packing.pack(input_ids), self.compute_dtype))
        for layer, block in enumerate(self.blocks):
            view, angles = near if layer % c.global_every else wide
            x = self.run(block, x, packing, view, angles)
        return self.norm(x), packing

    def prediction_states(self, x: Tensor) -> Tensor:
        """What words and labels are scored from: [..., D] → [..., D]."""
        return self.prediction_norm(F.gelu(self.prediction(x)))

    def label_states(self, x: Tensor) -> Tensor:
        """As for words."""
        return self.prediction_states(x)

    def pooled(self, x: Tensor, packing: Packing) -> Tensor:
        """The first token, or the mean of all, through the layer that words go through."""
        if self.config.pooling == "cls":
            return self.prediction_states(x[packing.first()])
        return self.prediction_states(packing.mean(x))

    @property
    def head_bias(self) -> Tensor | None:
        """[V]."""
        return self.prediction_bias


def count_parameters(config: Config) -> int:
    """Exact count; words are scored with the embedding and add only a bias."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """Multiply-adds of one forward pass, two operations each; as `bert.flops_per_token` counts."""
    d = config.d_model
    words = d * d + config.vocab_size * d if config.head == "mlm" else 0
    matmuls = config.n_layers * (4 * d * d + 3 * d * config.d_ff) + words
    n_global = -(-config.n_layers // config.global_every)
    near = min(seq_len, config.window + 1)
    keys = n_global * seq_len + (config.n_layers - n_global) * near
    return 2.0 * matmuls + 2 * (2 * keys * d)


HF_NAMES = (
    Weight("model.embeddings.tok_embeddings.weight", ("embed.weight",)),
    Weight("model.embeddings.norm.weight", ("embed_norm.weight",)),
    Weight("model.layers.{i}.attn_norm.weight", ("blocks.{i}.attention_norm.weight",)),
    Weight(
        "model.layers.{i}.attn.Wqkv.weight",
        ("blocks.{i}.q.weight", "blocks.{i}.k.weight", "blocks.{i}.v.weight"),
    ),
    Weight("model.layers.{i}.attn.Wo.weight", ("blocks.{i}.o.weight",)),
    Weight("model.layers.{i}.mlp_norm.weight", ("blocks.{i}.mlp_norm.weight",)),
    Weight(
        "model.layers.{i}.mlp.Wi.weight", ("blocks.{i}.gate.weight", "blocks.{i}.up.weight")
    ),
    Weight("model.layers.{i}.mlp.Wo.weight", ("blocks.{i}.down.weight",)),
    Weight("model.final_norm.weight", ("norm.weight",)),
    Weight("head.dense.weight", ("prediction.weight",)),
    Weight("head.norm.weight", ("prediction_norm.weight",)),
    Weight("decoder.bias", ("prediction_bias",)),
    Weight("classifier.weight", ("classifier.weight",)),
    Weight("classifier.bias", ("classifier.bias",)),
)  # fmt: skip
HF_TIED = {"decoder.weight": "embed.weight"}
HF_PREFIX = "model."
HF_IGNORED = ()


def hf_names(config: Config) -> tuple[Weight, ...]:
    """The layer of spans is called `classifier`, too."""
    if config.head != "span":
        return HF_NAMES
    rows = HF_NAMES[:-2]
    return (
        *rows,
        Weight("classifier.weight", ("span.weight",)),
        Weight("classifier.bias", ("span.bias",)),
    )


def _kinds(n_layers: int, every: int) -> list[str]:
    """What the layers see, in their words."""
    return ["sliding_attention" if i % every else "full_attention" for i in range(n_layers)]


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as the ModernBert classes of transformers read it.

    Both ways of telling the bases of the rotary positions are written.
    """
    rope = {
        "full_attention": {"rope_type": "default", "rope_theta": config.global_theta},
        "sliding_attention": {"rope_type": "default", "rope_theta": config.local_theta},
    }
    return {
        "architectures": ["ModernBert" + CLASSES[config.head]],
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_ff,
        "hidden_activation": "gelu",
        "global_attn_every_n_layers": config.global_every,
        "layer_types": _kinds(config.n_layers, config.global_every),
        "local_attention": config.window,
        "global_rope_theta": config.global_theta,
        "local_rope_theta": config.local_theta,
        "rope_parameters": rope,
        "norm_eps": config.norm_eps,
        "norm_bias": False,
        "attention_bias": False,
        "mlp_bias": False,
        "decoder_bias": True,
        "classifier_bias": False,
        "classifier_activation": "gelu",
        "classifier_pooling": config.pooling,
        "classifier_dropout": config.dropout,
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        **hf_labels(config.n_labels),
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`.

    Raises:
        ModelError: The file asks for something this family does not have.
    """
    wanted = {
        "hidden_activation": "gelu", "classifier_activation": "gelu", "norm_bias": False,
        "attention_bias": False, "mlp_bias": False, "decoder_bias": True, "classifier_bias": False,
    }  # fmt: skip
    for key, value in wanted.items():
        if hf.get(key, value) != value:
            raise ModelError(f"config.json: {key} = {hf[key]!r} is not supported for modernbert")
    n_layers, every = hf.get("num_hidden_layers", 22), hf.get("global_attn_every_n_layers", 3)
    kinds = hf.get("layer_types") or _kinds(n_layers, every)
    if kinds != _kinds(n_layers, every):
        wide = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
        every = wide[1] if len(wide) > 1 else max(n_layers, 1)
        if kinds != _kinds(n_layers, every):
            raise ModelError("config.json: layer_types is not one full_attention every n layers")
    rope = hf.get("rope_parameters") or {}
    for part in rope.values():
        if part.get("rope_type", "default") != "default":
            raise ModelError(f"config.json: rope type {part['rope_type']!r} is not supported")
    theta = {
        ours: rope.get(kind, {}).get("rope_theta", hf.get(f"{ours}_rope_theta", default))
        for ours, kind, default in (
            ("global", "full_attention", 160000.0), ("local", "sliding_attention", 10000.0)
        )
    }  # fmt: skip
    head, n_labels = hf_head(hf, "ModernBert")
    return Config(
        vocab_size=hf.get("vocab_size", 50368),
        max_seq_len=hf.get("max_position_embeddings", 8192),
        d_model=hf.get("hidden_size", 768),
        n_layers=n_layers,
        n_heads=hf.get("num_attention_heads", 12),
        d_ff=hf.get("intermediate_size", 1152),
        global_every=every,
        window=hf.get("local_attention", 128),
        global_theta=theta["global"],
        local_theta=theta["local"],
        dropout=hf.get("classifier_dropout", 0.0),
        norm_eps=hf.get("norm_eps", 1e-5),
        head=head,
        pooling=hf.get("classifier_pooling", "cls"),
        n_labels=n_labels,
    )
