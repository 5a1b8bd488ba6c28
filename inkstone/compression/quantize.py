"""A network with weights of 8 or 4 bits, rounded with a view to the text that it will read.

Maps and the table of words become whole numbers or floats of 8 bits (`nn/quantized.py`); norms,
biases and positions stay as they are, and so does the map onto labels, which is small and says the
last word. The table of words, which also scores them where the head is tied, and a head of its own
keep 8 bits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inkstone.errors import ModelError, UsageError
from inkstone.models._base import OUTPUTS
from inkstone.nn import linear, quantized_layers
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.quantized import GROUP, Quantized, quantize, quantize_float8

TABLE_BITS = 8
TABLE = "embed"
ASKED_FOR = "asked for"
LABELS = tuple(name.removesuffix(".") for name in OUTPUTS if name != "head.")
Importance = dict[str, Tensor]  # of each map, by name: [d_in], the mean square of its inputs


@dataclass(frozen=True)
class Choice:
    """What becomes of each map and table of a network.

    Attributes:
        bits: By name, of those that are rounded.
        kept: Those that are not, and why.
        floats: Whether they become floats, not whole numbers.
    """

    bits: dict[str, int]
    kept: dict[str, str]
    floats: bool = False


def choose(
    model: nn.Module, bits: int, keep: Sequence[str] = (), *, floats: bool = False
) -> Choice:
    """Which weights are rounded.

    Args:
        model: Any network.
        bits: Of the maps: 8 or 4.
        keep: Beginnings or last parts of names that stay as they are: "embed", "blocks.0", "down".
        floats: Round to floats of 8 bits, not to whole numbers.

    Raises:
        UsageError: `keep` names nothing, or what was rounded to another kind of numbers.
        ModelError: Nothing is left to round.
    """
    chosen: dict[str, int] = {}
    kept: dict[str, str] = {}
    wanted = asked_for(model, keep)
    for name, module in weighted(model).items():
        last = name.rpartition(".")[2]
        if name in wanted:
            known = quantized_layers.quantized_of(module)
            if known is not None and known.floats != floats:
                raise UsageError(
                    f"{name} was rounded to another kind of numbers, and one model has one kind",
                    fix="leave it out of --keep, or compress the model that it was made of",
                )
            kept[name] = ASKED_FOR
        elif isinstance(module, Embedding) and last != TABLE:
            kept[name] = "a small table"
        elif last in LABELS:
            kept[name] = "onto labels"
        elif module.weight.shape[1] % GROUP and not floats:
            kept[name] = f"rows of {module.weight.shape[1]}, which {GROUP} does not divide"
        else:
            head = last in (TABLE, "head")
            chosen[name] = max(bits, TABLE_BITS) if head else bits
    if not chosen:
        raise ModelError("this model has no weights that could be rounded")
    return Choice(chosen, kept, floats)


def weighted(model: nn.Module) -> dict[str, Linear | Embedding]:
    """The maps and tables of a network, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, Linear | Embedding)}


def asked_for(model: nn.Module, keep: Sequence[str]) -> set[str]:
    """Names of the maps and tables that are to stay as they are.

    Raises:
        UsageError: `keep` names nothing.
    """
    found = weighted(model)
    wanted: set[str] = set()
    for name in keep:
        meant = {other for other in found if _is(other, name)}
        if not meant:
            known = sorted({other.rpartition(".")[2] for other in found})
            raise UsageError(f"nothing is called {name!r}", fix=f"known: {', '.join(known)}")
        wanted |= meant
    return wanted


def check_floats(model: nn.Module) -> None:
    """Whether the weights of a network can learn.

    Raises:
        ModelError: They were rounded.
    """
    if any(quantized_layers.quantized_of(module) is not None for module in model.modules()):
        raise ModelError(
            "its weights were rounded already, and rounded weights do not learn",
            fix="take the model that it was made of; --to rounds what is pruned or distilled",
        )


def calibrate(read: Callable[[], object], model: nn.Module) -> Importance:
    """How large the inputs of every map are while `read` lets the model read.

    Args:
        read: Anything that runs the model.
        model: The network.
    """
    names = {id(module): name for name, module in model.named_modules()}
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(maps: Sequence[Linear], x: Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).float()
        square = rows.square().sum(0)
        for module in maps:
            name = names.get(id(module))
            if name is not None:
                sums[name] = sums.get(name, torch.zeros_like(square)) + square
                counts[name] = counts.get(name, 0) + len(rows)

    with linear.watched(watch):
        read()
    return {name: total / counts[name] for name, total in sums.items()}


def quantize_model(
    model: Any,
    choice: Choice,
    importance: Importance | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Any:
    """A copy of a network with weights in few bits.

    Args:
        model: It stays as it is.
        choice: By `choose`.
        importance: By `calibrate`.
        tell: Called as tell(weights rounded, of how many).
    """
    rounded: dict[str, Quantized] = {}
    sizes = {name: model.get_submodule(name).weight.numel() for name in choice.bits}
    done = 0
    for name, bits in choice.bits.items():
        weight = model.get_submodule(name).weight.detach().cpu()
        counts = (importance or {}).get(name)
        if choice.floats:
            rounded[name] = quantize_float8(weight)
        else:
            rounded[name] = quantize(weight, bits, None if counts is None else counts.cpu())
        done += sizes[name]
        if tell is not None:
            tell(done, sum(sizes.values()))
    weights = [id(model.get_submodule(name).weight) for name in choice.bits]
    small = copy.deepcopy(model, dict.fromkeys(weights))  # these need not be copied first
    for name, numbers in rounded.items():
        quantized_layers.put(small, name, numbers)
    return small.to(model.device).eval()


def _is(name: str, wanted: str) -> bool:
    return name == wanted or name.startswith(f"{wanted}.") or name.endswith(f".{wanted}")
