"""Fewer layers, or fewer heads of attention: a smaller network of the same family.

What goes is what the user's own text misses least.

- heads: by I_h = E |∂L/∂ξ_h|, ξ_h a factor before the output of head h (Michel et al. 2019, "Are
  Sixteen Heads Really Better than One?", equation 2). By the chain rule that is the sum of
  w · ∂L/∂w over the columns of the output map that read the head, so no factor is needed. Every
  layer loses as many, as a configuration has one number for all.
- layers: one after the other the one without which the loss is least (as Kim et al. 2024,
  "Shortened LLaMA", section 3.1, who take all at once). The first stays: it reads the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from inkstone import registry
from inkstone.compression.quantize import check_floats
from inkstone.errors import ModelError, UsageError

Loss = Callable[[Any, Any], tuple[Tensor, int]]
Tell = Callable[[int, int], None]


def family_of(model: Any) -> str:
    """The name of a network's family."""
    return type(model).__module__.rpartition(".")[2]


def check_layers(model: Any) -> None:
    """Whether a network is a stack of layers that can do with fewer.

    Raises:
        ModelError: It is not.
    """
    blocks = getattr(model, "blocks", None)
    kind = registry.load("models", family_of(model)).KIND
    stacked = isinstance(blocks, nn.ModuleList) and len(blocks) == model.config.n_layers
    if not stacked or kind not in ("causal", "encoder"):
        raise ModelError(
            f"a {family_of(model)} is no single stack of layers, so none can be left out",
            fix="--prune-by magnitude, movement or 2:4 fits every network",
        )
    check_floats(model)


def check_heads(model: Any) -> None:
    """Whether a family's shape allows fewer heads of the same width.

    Raises:
        ModelError: It does not.
    """
    fields = type(model.config).model_fields
    own = all(hasattr(block, "o") for block in getattr(model, "blocks", [None]))
    if not (own and {"head_dim", "n_kv_heads"} <= fields.keys()):
        raise ModelError(
            f"heads of a {family_of(model)} are d_model / n_heads wide, so fewer of them would be "
            "wider ones",
            fix="--prune-by layers, magnitude, movement or 2:4; llama-shaped models can lose heads",
        )
    check_floats(model)


def with_layers(model: Any, kept: Sequence[int]) -> Any:
    """The network of these layers alone; it shares its weights with `model`.

    Args:
        model: Of a family that `check_layers` allows.
        kept: Numbers of layers, in their order.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        first, _, rest = name.partition(".")
        if first != "blocks":
            state[name] = tensor
            continue
        number, _, rest = rest.partition(".")
        for new in (new for new, old in enumerate(kept) if old == int(number)):
            state[f"blocks.{new}.{rest}"] = tensor
    return _of_shape(model, state, n_layers=len(kept))


def with_heads(model: Any, kept: Sequence[Sequence[int]]) -> Any:
    """The network of these heads alone.

    Args:
        model: Of a family that `check_heads` allows.
        kept: Of every layer the numbers of key heads, as many of each; their query heads go along.
    """
    c, state = model.config, model.state_dict()
    per_group = c.n_heads // c.n_kv_heads
    for layer, numbers in enumerate(kept):
        few = torch.tensor(numbers)
        for name, heads in (("q", per_group), ("k", 1), ("v", 1)):
            weight = state[f"blocks.{layer}.{name}.weight"]
            rows = weight.unflatten(0, (c.n_kv_heads, heads * c.head_dim))
            state[f"blocks.{layer}.{name}.weight"] = rows[few].flatten(0, 1)
        columns = state[f"blocks.{layer}.o.weight"].unflatten(1, (c.n_kv_heads, -1))
        state[f"blocks.{layer}.o.weight"] = columns[:, few].flatten(1)
    left = len(kept[0])
    return _of_shape(model, state, n_heads=left * per_group, n_kv_heads=left)


def head_importance(
    model: Any, loss: Loss, rows: Iterable[Any], tell: Tell | None = None
) -> Tensor:
    """How much each head matters: [n_layers, K], of every key head with its query heads.

    Args:
        model: It is read in evaluation mode and stays as it is.
        loss: (model, batch) → (summed nats, targets).
        rows: Batches; the absolute value is taken of each.
        tell: Called as tell(batches done, 0).
    """
    outputs = [block.o.weight for block in model.blocks]
    total = torch.zeros(len(outputs), model.config.n_kv_heads)
    was_training = model.training
    model.eval()
    for number, batch in enumerate(rows, 1):
        nats, count = loss(model, batch)
        gradients = torch.autograd.grad(nats / max(1, count), outputs)
        for layer, (weight, gradient) in enumerate(zip(outputs, gradients, strict=True)):
            each = (weight.detach() * gradient).sum(0).unflatten(0, (total.shape[1], -1)).sum(1)
            total[layer] += each.abs().cpu()
        if tell is not None:
            tell(number, 0)
    model.train(was_training)
    return total


def best_heads(importance: Tensor, share: float) -> list[list[int]]:
    """Of every layer the heads that stay.

    Raises:
        UsageError: The share is none of them, or all.
    """
    n_heads = importance.shape[1]
    n_left = n_heads - _count(n_heads, share, "heads of a layer")
    return [sorted(row.topk(n_left).indices.tolist()) for row in importance]


def best_layers(
    model: Any, loss: Callable[[Any], float], share: float, tell: Tell | None = None
) -> list[int]:
    """The layers that stay when a share of them goes, found one at a time.

    Args:
        model: Of a family that `check_layers` allows.
        loss: Of a network, on the user's data.
        share: Of the layers. Where kinds of layers alternate, whole rounds go.
        tell: Called as tell(networks tried, of how many).

    Raises:
        UsageError: The share is none of them, or all.
    """
    period, n_layers = model.period, model.config.n_layers
    left = [list(range(i, min(i + period, n_layers))) for i in range(0, n_layers, period)]
    unit = "layers" if period == 1 else f"rounds of {period} layers"
    n_gone, tried = _count(len(left), share, unit), 0
    of = sum(len(left) - 1 - gone for gone in range(n_gone))
    for _ in range(n_gone):
        losses = []
        for without in range(1, len(left)):
            others = left[:without] + left[without + 1 :]
            losses.append(loss(with_layers(model, list(chain.from_iterable(others)))))
            tried += 1
            if tell is not None:
                tell(tried, of)
        del left[1 + min(range(len(losses)), key=losses.__getitem__)]
    return list(chain.from_iterable(left))


def spread(n_layers: int, of: int, period: int = 1) -> list[int]:
    """Layers of a network at equal distances, the first and the last among them: by these a student
    of `n_layers` begins (Sanh et al. 2019, "DistilBERT", section 3, take every other one)."""
    rounds, whole = -(-n_layers // period), of // period
    last_is_cut_short = 0 < n_layers % period <= of % period
    sources = whole + last_is_cut_short  # rounds that have enough layers
    places = [round(i * (sources - 1) / max(1, rounds - 1)) for i in range(rounds)]
    return [places[i // period] * period + i % period for i in range(n_layers)]


def _count(of: int, share: float, unit: str) -> int:
    gone = round(share * of)
    if not 0 < gone < of:
        what = "all" if gone else "none"
        raise UsageError(
            f"--prune {share:g} is {what} of {of} {unit}",
            fix=f"give a share from {1 / of:.2g} to {1 - 1 / of:.2g}"
            if of > 1
            else "there is one only: prune by magnitude, movement or 2:4",
        )
    return gone


def _of_shape(model: Any, state: dict[str, Tensor], **shape: int) -> Any:
    with torch.device("meta"):
        other = type(model)(model.config.model_copy(update=shape))
    other.load_state_dict(state, strict=True, assign=True)
    other.compute_dtype = model.compute_dtype
    return other.train(model.training)
