"""Families as llama.cpp reads them: its names for their shape and for their weights.

Sources: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md) and llama.cpp's own
`src/models/*.cpp`. Shapes: V vocab, T positions, D d_model, F d_ff, H heads, K kv heads, E
head_dim, X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inkstone.compression.export._base import Source, unsupported
from inkstone.errors import ModelError
from inkstone.inference.embed import Pooling

KNOWN = "gpt2, gpt3, llama, mixtral, bert, roberta and distilbert; export others to onnx"
POOLINGS = {"mean": 1, "cls": 2, "lasttoken": 3}  # llama.cpp's numbers
SCORES = 4  # its number for a head over texts
Tensors = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Layout:
    """A model in llama.cpp's terms.

    Attributes:
        arch: Its name for the architecture.
        keys: The shape, under names behind that of the architecture.
        tensors: Names and weights, made anew at every call: one is held at a time.
        tied: Whether the head is the embedding.
        notes: Where it is less than the model.
    """

    arch: str
    keys: dict[str, Any]
    tensors: Callable[[], Tensors]
    tied: bool
    notes: list[str] = field(default_factory=list)


def layout(source: Source) -> Layout:
    """How a model is written.

    Raises:
        ModelError: llama.cpp has no such network; names what can be done.
    """
    makers: dict[str, Callable[[Source], Layout]] = {
        "gpt2": _gpt2, "gpt3": _gpt2, "llama": _llama, "mixtral": _llama, "bert": _bert,
        "roberta": _bert, "distilbert": _bert,
    }  # fmt: skip
    if source.family not in makers:
        raise unsupported(source, "GGUF", KNOWN)
    return makers[source.family](source)


def _context(source: Source, window: int | None) -> tuple[int, list[str]]:
    """Tokens for which the network there is this one: it sees all of them, however far back."""
    whole = int(source.model.config.max_seq_len)
    if window is None or window >= whole:
        return whole, []
    note = f"the context is {window:,} tokens, not {whole:,}: llama.cpp has no window for this"
    return window, [f"{note} architecture, and up to its width the two are the same"]


def _shape(c: Any, context: int) -> dict[str, Any]:
    return {
        "vocab_size": c.vocab_size,
        "context_length": context,
        "embedding_length": c.d_model,
        "block_count": c.n_layers,
        "feed_forward_length": c.d_ff,
        "attention.head_count": c.n_heads,
        "attention.head_count_kv": c.n_kv_heads if hasattr(c, "n_kv_heads") else c.n_heads,
    }


def _pair(there: str, module: Any) -> Tensors:
    """A weight and, where there is one, its bias."""
    yield f"{there}.weight", module.weight
    if module.bias is not None:
        yield f"{there}.bias", module.bias


def _gpt2(source: Source) -> Layout:
    model, c = source.model, source.model.config
    context, notes = _context(source, getattr(c, "band", None))

    def tensors() -> Tensors:
        yield "token_embd.weight", model.embed.weight
        yield "position_embd.weight", model.position.weight[:context]
        for i, b in enumerate(model.blocks):
            at = f"blk.{i}"
            yield from _pair(f"{at}.attn_norm", b.attention_norm)
            yield f"{at}.attn_qkv.weight", torch.cat([b.q.weight, b.k.weight, b.v.weight])
            yield f"{at}.attn_qkv.bias", torch.cat([b.q.bias, b.k.bias, b.v.bias])
            yield from _pair(f"{at}.attn_output", b.o)
            yield from _pair(f"{at}.ffn_norm", b.mlp_norm)
            yield from _pair(f"{at}.ffn_up", b.up)
            yield from _pair(f"{at}.ffn_down", b.down)
        yield from _pair("output_norm", model.norm)

    keys = _shape(c, context) | {"attention.layer_norm_epsilon": c.norm_eps}
    return Layout("gpt2", keys, tensors, tied=True, notes=notes)


def _llama(source: Source) -> Layout:
    """Llama, Mistral and Mixtral under one name; with norms on queries and keys it is Qwen3."""
    model, c = source.model, source.model.config
    context, notes = _context(source, c.sliding_window)
    if c.qk_norm and c.stretch is not None:
        raise ModelError(
            "llama.cpp's qwen3 knows no stretched rotary positions",
            fix="train with model.rope_factor=1, or export to onnx",
        )
    stretch = _stretch(model)

    def tensors() -> Tensors:
        yield "token_embd.weight", model.embed.weight
        if stretch is not None:
            yield "rope_freqs.weight", stretch
        for i, b in enumerate(model.blocks):
            at = f"blk.{i}"
            yield f"{at}.attn_norm.weight", b.attention_norm.weight
            if c.qk_norm:
                yield f"{at}.attn_q.weight", b.q.weight
                yield f"{at}.attn_k.weight", b.k.weight
                yield f"{at}.attn_q_norm.weight", b.q_norm.weight
                yield f"{at}.attn_k_norm.weight", b.k_norm.weight
            else:
                yield f"{at}.attn_q.weight", interleaved(b.q.weight, c.n_heads)
                yield f"{at}.attn_k.weight", interleaved(b.k.weight, c.n_kv_heads)
            yield f"{at}.attn_v.weight", b.v.weight
            yield f"{at}.attn_output.weight", b.o.weight
            yield f"{at}.ffn_norm.weight", b.mlp_norm.weight
            yield from _feed_forward(at, b)
        yield "output_norm.weight", model.norm.weight
        if model.head is not None:
            yield "output.weight", model.head.weight

    keys = _shape(c, context) | {
        "attention.layer_norm_rms_epsilon": c.norm_eps,
        "attention.key_length": c.head_dim,
        "attention.value_length": c.head_dim,
        "rope.dimension_count": c.head_dim,
        "rope.freq_base": c.rope_theta,
    }
    if hasattr(c, "n_experts"):
        keys |= {"expert_count": c.n_experts, "expert_used_count": c.n_experts_used}
    arch = "qwen3" if c.qk_norm else "llama"
    return Layout(arch, keys, tensors, tied=model.head is None, notes=notes)


def _feed_forward(at: str, block: Any) -> Tensors:
    if not hasattr(block, "experts"):
        for name in ("gate", "up", "down"):
            yield f"{at}.ffn_{name}.weight", getattr(block, name).weight
        return
    yield f"{at}.ffn_gate_inp.weight", block.router.weight
    for name in ("gate", "up", "down"):  # [X, …]: the experts stand in one tensor
        parts = [getattr(expert, name).weight for expert in block.experts]
        yield f"{at}.ffn_{name}_exps.weight", torch.stack(parts)


def interleaved(weight: Tensor, n_heads: int) -> Tensor:
    """Rows of queries or keys for rotary positions that turn neighbours: [H·E, D] → [H·E, D].

    Ours turn channel i with channel i + E/2 (`nn.rope`); llama.cpp turns 2i with 2i + 1.
    """
    halves = weight.unflatten(0, (n_heads, 2, -1))  # [H, 2, E/2, D]
    return halves.transpose(1, 2).flatten(0, 2)


def _stretch(model: Any) -> Tensor | None:
    """What the turn of each pair is divided by: [E/2]."""
    rope = model.rope
    if rope.stretch is None:
        return None
    pairs = torch.arange(0, rope.head_dim, 2, dtype=torch.float32)
    turn = rope.base ** (-pairs / rope.head_dim)
    divided: Tensor = turn / rope.stretch.apply(turn)
    return divided


def _bert(source: Source) -> Layout:
    """An encoder, for vectors; or with a head over texts, for labels."""
    model, c = source.model, source.model.config
    if c.head in ("token", "span"):
        raise ModelError(
            f"llama.cpp has no head over {'tokens' if c.head == 'token' else 'spans of text'}",
            fix="export to onnx instead: inkstone export RUN --to onnx",
        )
    if c.head == "sequence" and source.family == "distilbert":
        raise ModelError(
            "llama.cpp puts a tanh where the head of DistilBERT has a ReLU",
            fix="export to onnx instead, or train the family bert",
        )
    scores = c.head == "sequence"
    pooling = SCORES if scores else _pooling(source)
    notes = []
    if c.head in ("mlm", "pretraining"):
        notes.append("the head over words is left out: llama.cpp uses encoders for vectors")

    def tensors() -> Tensors:
        yield "token_embd.weight", model.embed.weight
        yield "position_embd.weight", model.position.weight[c.first_position :]
        if model.token_type is not None:
            yield "token_types.weight", model.token_type.weight
        yield from _pair("token_embd_norm", model.embed_norm)
        for i, b in enumerate(model.blocks):
            at = f"blk.{i}"
            for name in ("q", "k", "v"):
                yield from _pair(f"{at}.attn_{name}", getattr(b, name))
            yield from _pair(f"{at}.attn_output", b.o)
            yield from _pair(f"{at}.attn_output_norm", b.attention_norm)
            yield from _pair(f"{at}.ffn_up", b.up)
            yield from _pair(f"{at}.ffn_down", b.down)
            yield from _pair(f"{at}.layer_output_norm", b.mlp_norm)
        if scores:
            yield from _pair("cls", model.pooler)
            yield from _pair("cls.output", model.classifier)

    keys = _shape(c, c.max_seq_len) | {
        "attention.layer_norm_epsilon": c.norm_eps,
        "attention.causal": False,
        "pooling_type": pooling,
    }
    if scores:
        named = source.labels if len(source.labels) == c.n_labels else None
        keys["classifier.output_labels"] = named or [f"LABEL_{i}" for i in range(c.n_labels)]
    return Layout("bert", keys, tensors, tied=False, notes=notes)


def _pooling(source: Source) -> int:
    mode = Pooling.read(source.folder).mode
    if mode not in POOLINGS:
        raise ModelError(
            f"llama.cpp cannot pool by {mode!r}", fix=f"it knows {', '.join(POOLINGS)}"
        )
    return POOLINGS[mode]
