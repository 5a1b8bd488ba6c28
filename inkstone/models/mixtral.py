"""Mixtral: "Mixtral of Experts" (Jiang et al. 2024).

A Llama in which each token is sent to a few of many feed-forward parts (section 2.1): the router's
largest scores choose the experts, and a softmax over those weighs what they say. Shapes: B batch,
T time, N tokens, D d_model, X experts.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from inkstone.errors import ModelError
from inkstone.models import _base, llama
from inkstone.models._weights import Weight
from inkstone.nn.linear import Linear, stacked

KIND = "causal"
HF_MODEL_TYPES = ("mixtral",)


class Config(llama.Config):
    """Shape of a mixture of experts: a Llama's, and how many experts there are and are used."""

    n_experts: int = Field(default=8, ge=1, le=4096)
    n_experts_used: int = Field(default=2, ge=1, le=4096)
    balance: float = Field(
        default=0.001, ge=0.0, le=10.0, description="weight of the loss that spreads tokens evenly"
    )
    qk_norm: Literal[False] = False  # the published network has none

    @model_validator(mode="after")
    def _enough_experts(self) -> Config:
        if self.n_experts_used > self.n_experts:
            raise ValueError(
                f"n_experts_used {self.n_experts_used} is more than n_experts {self.n_experts}"
            )
        return self


PRESETS = {
    "mixtral-8x7b": Config(
        max_seq_len=32768, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_ff=14336,
        rope_theta=1e6, tied_head=False,
    ),
}  # fmt: skip


class Expert(nn.Module):
    """One feed-forward part: SwiGLU (Shazeer 2020, equation 6)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = Linear(config.d_model, config.d_ff)
        self.up = Linear(config.d_model, config.d_ff)
        self.down = Linear(config.d_ff, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[n, D] → [n, D]."""
        gate, up = stacked(x, (self.gate, self.up)).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(llama.Block):
    """Llama's block with experts in place of its feed-forward part."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        del self.gate, self.up, self.down
        self.n_used = config.n_experts_used
        self.unevenness: Tensor | None = None  # of the last batch, in training
        self.router = Linear(config.d_model, config.n_experts)
        self.experts = nn.ModuleList(Expert(config) for _ in range(config.n_experts))

    def mlp(self, x: Tensor) -> Tensor:
        """Each token through the experts that the router chooses: [B, T, D] → [B, T, D]."""
        tokens = x.flatten(0, -2)
        p = torch.softmax(self.router(tokens).float(), -1)  # [N, X]
        weights, chosen = p.topk(self.n_used, dim=-1)  # [N, n_used]
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            token, rank = (chosen == i).nonzero(as_tuple=True)
            if len(token):
                said = expert(tokens[token]) * weights[token, rank, None]
                out = out.index_add(0, token, said)
        self.unevenness = _unevenness(p, chosen) if self.training else None
        return out.view_as(x)


def _unevenness(p: Tensor, chosen: Tensor) -> Tensor:
    """n_used where experts get equal shares, more elsewhere (Fedus et al. 2021, equation 4)."""
    n_experts = p.shape[1]
    share = F.one_hot(chosen, n_experts).float().sum((0, 1)) / len(p)
    return n_experts * (share * p.mean(0)).sum()


class Model(llama.Model):
    """The whole network. Parameters are fp32; activations run in `compute_dtype`."""

    config: Config

    def new_block(self) -> Block:
        """A layer with experts."""
        return Block(self.config)

    def parts(self) -> None:
        """Which experts a token goes to is decided as it comes."""
        return None

    def extra_loss(self) -> Tensor | None:
        """Mean unevenness of the layers in the last batch, weighted; None out of training."""
        found = [block.unevenness for block in self.blocks if isinstance(block, Block)]
        uneven = [x for x in found if x is not None]
        if not uneven or not self.config.balance:
            return None
        return self.config.balance * torch.stack(uneven).mean()


def count_parameters(config: Config) -> int:
    """Exact count, without taking memory."""
    return _base.count(Model, config)


def flops_per_token(config: Config, seq_len: int) -> float:
    """As Llama's, with as many feed-forward parts as are used."""
    d = config.d_model
    more = (config.n_experts_used - 1) * 3 * d * config.d_ff + config.n_experts * d
    return llama.flops_per_token(config, seq_len) + 2.0 * config.n_layers * more


_EXPERT = "model.layers.{i}.block_sparse_moe.experts.{x}"
HF_COUNTS = {"i": "n_layers", "x": "n_experts"}
HF_NAMES = (
    *(row for row in llama.HF_NAMES if ".mlp." not in row.theirs),
    Weight("model.layers.{i}.block_sparse_moe.gate.weight", ("blocks.{i}.router.weight",)),
    Weight(f"{_EXPERT}.w1.weight", ("blocks.{i}.experts.{x}.gate.weight",)),
    Weight(f"{_EXPERT}.w3.weight", ("blocks.{i}.experts.{x}.up.weight",)),
    Weight(f"{_EXPERT}.w2.weight", ("blocks.{i}.experts.{x}.down.weight",)),
)
HF_TIED, HF_PREFIX, HF_IGNORED = llama.HF_TIED, llama.HF_PREFIX, llama.HF_IGNORED


def to_hf_config(config: Config) -> dict[str, Any]:
    """`config.json` as MixtralForCausalLM reads it."""
    return llama.to_hf_config(config) | {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.n_experts_used,
        "router_aux_loss_coef": config.balance,
        "sliding_window": config.sliding_window,
    }


def from_hf_config(hf: dict[str, Any]) -> Config:
    """Our shape from their `config.json`; errors as in `llama.from_hf_config`."""
    defaults: dict[str, Any] = {"intermediate_size": 14336, "max_position_embeddings": 131072}
    defaults |= {"num_key_value_heads": 8, "rope_theta": 1e6, "rms_norm_eps": 1e-5}
    if hf.get("router_jitter_noise"):
        raise ModelError("config.json: router_jitter_noise is not supported for mixtral")
    base = llama.from_hf_config({**defaults, **hf, "model_type": "mistral"}).model_dump()
    return Config(
        **base,
        n_experts=hf.get("num_local_experts", 8),
        n_experts_used=hf.get("num_experts_per_tok", 2),
        balance=hf.get("router_aux_loss_coef", 0.001),
    )
