"""CTranslate2's descriptions of networks, filled with ours."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inkstone.nn.positions import sinusoids

ACTIVATIONS = {"relu": "RELU", "gelu": "GELU", "swish": "SWISH"}


def gpt2(ct2: Any, model: Any) -> Any:
    """A decoder of the GPT-2 kind."""
    c = model.config
    spec = ct2.specs.TransformerDecoderModelSpec.from_config(
        c.n_layers, c.n_heads, pre_norm=True, activation=ct2.specs.Activation.GELUTanh
    )
    there = spec.decoder
    there.embeddings.weight = there.projection.weight = _array(model.embed.weight)
    there.scale_embeddings = False
    there.position_encodings.encodings = _array(model.position.weight)
    _norm(there.layer_norm, model.norm)
    for layer, block in zip(there.layer, model.blocks, strict=True):
        _attention(layer.self_attention, block, block.attention_norm, own=True)
        _linear(layer.ffn.linear_0, block.up)
        _linear(layer.ffn.linear_1, block.down)
        _norm(layer.ffn.layer_norm, block.mlp_norm)
    return spec


def transformer(ct2: Any, model: Any) -> Any:
    """An encoder-decoder of the kind of 2017."""
    c, enum = model.config, ct2.specs.Activation
    spec = ct2.specs.TransformerSpec.from_config(
        (c.n_layers, c.n_decoder_layers),
        c.n_heads,
        pre_norm=c.pre_norm,
        activation=getattr(enum, ACTIVATIONS[c.activation]),
        layernorm_embedding=c.embedding_norm,
    )
    words = _array(model.embed.weight)
    spec.encoder.embeddings[0].weight = spec.decoder.embeddings.weight = words
    spec.decoder.projection.weight = words
    if model.head_bias is not None and bool(model.head_bias.any()):
        spec.decoder.projection.bias = _array(model.head_bias)
    for there, side in ((spec.encoder, model.encoder), (spec.decoder, model.decoder)):
        there.scale_embeddings = math.sqrt(c.d_model) if c.scale_embedding else 1.0
        there.position_encodings.encodings = _positions(model, side)
        if c.embedding_norm:
            _norm(there.layernorm_embedding, side.embed_norm)
        if c.pre_norm:
            _norm(there.layer_norm, side.norm)
        for layer, block in zip(there.layer, side.blocks, strict=True):
            _attention(layer.self_attention, block.attention, block.attention_norm, own=True)
            if hasattr(block, "cross"):
                _attention(layer.attention, block.cross, block.cross_norm, own=False)
            _linear(layer.ffn.linear_0, block.up)
            _linear(layer.ffn.linear_1, block.down)
            _norm(layer.ffn.layer_norm, block.mlp_norm)
    return spec


def _positions(model: Any, side: Any) -> npt.NDArray[np.float32]:
    """[max_seq_len, D]."""
    c = model.config
    if side.position is not None:
        return _array(side.position.weight[model.first_position :])
    return _array(sinusoids(torch.arange(c.max_seq_len), c.d_model))


def _attention(there: Any, attention: Any, norm: Any, *, own: bool) -> None:
    """Maps that read the same stand in one."""
    _norm(there.layer_norm, norm)
    if own:
        _linear(there.linear[0], attention.q, attention.k, attention.v)
    else:
        _linear(there.linear[0], attention.q)
        _linear(there.linear[1], attention.k, attention.v)
    _linear(there.linear[-1], attention.o)


def _linear(there: Any, *maps: Any) -> None:
    there.weight = _array(torch.cat([m.weight for m in maps]))
    there.bias = _array(torch.cat([m.bias for m in maps]))


def _norm(there: Any, norm: Any) -> None:
    there.gamma, there.beta = _array(norm.weight), _array(norm.bias)


def _array(tensor: Tensor) -> npt.NDArray[np.float32]:
    """A copy: CTranslate2 quantizes in place."""
    return np.array(tensor.detach().to("cpu", torch.float32).numpy())
