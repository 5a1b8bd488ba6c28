"""LoRA: a change of low rank beside frozen weights (Hu et al. 2021, "LoRA: Low-Rank Adaptation of
Large Language Models", section 4.1).

    h = W x + (α / r) · B A x,   A [r, d_in] random, B [d_out, r] zero, W frozen

The change is hung on a map from outside, as a parametrization of its weight: whatever reads
`linear.weight` gets W + (α / r) · B A, so that no model knows of it. Learning then keeps optimizer
state for A and B alone; the gradient of the sum is still made, one map at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from inkstone.errors import ModelError
from inkstone.nn.linear import Linear

WITHIN = "blocks."  # maps of the layers; tables of words and heads stay as they are


@dataclass(frozen=True)
class Pair:
    """The change of one map.

    Attributes:
        a: [r, d_in].
        b: [d_out, r].
        scale: α / r.
    """

    a: Tensor
    b: Tensor
    scale: float


class Change(nn.Module):
    """W → W + scale · B A."""

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Parameter(pair.a), nn.Parameter(pair.b), pair.scale

    def forward(self, weight: Tensor) -> Tensor:
        """[d_out, d_in] → the same shape."""
        return torch.addmm(weight, self.b, self.a, alpha=self.scale)


def maps(model: nn.Module) -> dict[str, Linear]:
    """The maps that can be changed, by name: "blocks.0.q".

    Experts are left out: transformers and peft keep them as one tensor, not as maps.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and name.startswith(WITHIN) and ".experts." not in name
    }


def attach(model: nn.Module, rank: int, alpha: float, targets: Iterable[str] = ()) -> None:
    """Freeze a model and hang a fresh change on its maps, which leaves its outputs as they are.

    Args:
        model: Of a family with `blocks`.
        rank: r.
        alpha: α.
        targets: Last names of the maps to change, such as "q"; () for all.

    Raises:
        ModelError: It has no such maps.
    """
    found = maps(model)
    known = {name.rpartition(".")[2] for name in found}
    unknown = sorted(set(targets) - known)
    if unknown or not found:
        what = f"no map {unknown[0]!r}" if unknown else "no maps in blocks"
        fix = f"known: {', '.join(sorted(known))}" if known else "train all weights instead"
        raise ModelError(f"LoRA: this model has {what}", fix=fix)
    chosen = set(targets) or known
    pairs = {}
    for name, linear in found.items():
        if name.rpartition(".")[2] in chosen:
            d_out, d_in = linear.weight.shape
            a = nn.init.kaiming_uniform_(linear.weight.new_empty(rank, d_in), a=math.sqrt(5))
            pairs[name] = Pair(a, linear.weight.new_zeros(d_out, rank), alpha / rank)
    put(model, pairs)


def put(model: nn.Module, pairs: Mapping[str, Pair]) -> None:
    """Freeze a model and hang these changes on it, in place of any that it has."""
    remove(model)
    model.requires_grad_(False)
    found = maps(model)
    for name, pair in pairs.items():
        parametrize.register_parametrization(found[name], "weight", Change(pair))


def changes(model: nn.Module) -> dict[str, Change]:
    """The changes that hang on a model, by the names of their maps."""
    return {
        name: linear.parametrizations.weight[0]  # type: ignore[union-attr, index, misc]
        for name, linear in maps(model).items()
        if parametrize.is_parametrized(linear, "weight")
    }


def remove(model: nn.Module, *, keep: bool = False) -> None:
    """Take all changes off, and let every weight learn again.

    Args:
        model: With or without changes.
        keep: Add them to the weights for good.
    """
    for name in changes(model):
        linear = maps(model)[name]
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=keep)
    model.requires_grad_(True)


@torch.no_grad()
def merged(model: Any) -> Any:
    """A copy of a model whose weights hold their changes: W + (α / r) · B A."""
    changed = changes(model)
    inside = tuple(f"{name}.parametrizations." for name in changed)
    state = {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if not name.startswith(inside)
    }
    known = maps(model)
    state |= {f"{name}.weight": known[name].weight.detach().clone() for name in changed}
    with torch.device("meta"):
        plain = type(model)(model.config)
    plain.load_state_dict(state, assign=True)
    plain.compute_dtype = model.compute_dtype
    return plain.train(model.training)
