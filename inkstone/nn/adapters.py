"""Many LoRA changes beside one model: every row of a batch is read with its own, or with none.

    y = W x + (α / r) · B A x,   A and B those of the row's adapter

W is in memory once and read once for all rows, and only the small product differs (Punica, Chen et
al. 2023, section 4; S-LoRA, Sheng et al. 2023, section 5). Nothing is merged, so W may as well be
whole numbers of 8 or 4 bits, while A and B stay in full precision (QLoRA, Dettmers et al. 2023,
section 3). This is torch's way; `compiled_adapters.py` does the same in one pass with the layers.
Shapes: N rows of a step, D_in and D_out of a map, r rank.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.errors import ModelError
from inkstone.nn.linear import Linear, stacked
from inkstone.nn.lora import Pair, maps
from inkstone.nn.paged import LaidOut
from inkstone.nn.quantized_layers import quantized_of

Pairs = Mapping[str, Pair]
"""An adapter: the change of each map that it changes, by name."""


def check(model: nn.Module, pairs: Pairs, name: str) -> None:
    """Whether an adapter fits a model.

    Args:
        model: Of a family with `blocks`.
        pairs: The adapter.
        name: What it is called in messages.

    Raises:
        ModelError: It changes a map that the model has not, of another shape, or by what is no
            number.
    """
    known = maps(model)
    fix = "give the model that the adapter was trained on"
    if not pairs:
        raise ModelError(f"adapter {name!r} changes nothing", fix=fix)
    for where, pair in pairs.items():
        if where not in known:
            raise ModelError(f"adapter {name!r}: this model has no map {where!r}", fix=fix)
        d_out, d_in = shape_of(known[where])
        rank = len(pair.a)
        if not rank or pair.a.shape != (rank, d_in) or pair.b.shape != (d_out, rank):
            raise ModelError(
                f"adapter {name!r}: {list(pair.a.shape)} and {list(pair.b.shape)} do not fit the "
                f"map {where!r} of {[d_out, d_in]}",
                fix=fix,
            )
        if not all(bool(torch.isfinite(x).all()) for x in (pair.a, pair.b * pair.scale)):
            raise ModelError(f"adapter {name!r} holds NaN or infinity at {where!r}")


def shape_of(linear: Linear) -> tuple[int, int]:
    """D_out and D_in; a weight of whole numbers is not made floats for it."""
    whole = quantized_of(linear)
    d_out, d_in = (linear.weight if whole is None else whole.codes).shape
    return d_out, d_in


class Rows:
    """Which rows are read with which adapter.

    Attributes:
        groups: Adapters, counted from 0, and their rows [n] int64; None stands for all rows.
    """

    def __init__(self, groups: Sequence[tuple[int, Tensor | None]] = ()) -> None:
        self.groups = list(groups)

    def begin(self, rows: Tensor | None) -> None:
        """The next pass reads these rows: [N] of adapters counted from 1, 0 for none."""
        self.groups = []
        if rows is not None:
            used = [number for number in rows.unique().tolist() if number]
            self.groups = [(n - 1, (rows == n).nonzero()[:, 0]) for n in used]


class AdaptedLinear(Linear):
    """A map beside which the changes of several adapters stand.

    Args:
        inner: The map, which is shared with whoever has it.
        pairs: Of each adapter its change of this map, or None.
        rows: Shared by all maps of a model.
    """

    def __init__(self, inner: Linear, pairs: Sequence[Pair | None], rows: Rows) -> None:
        nn.Module.__init__(self)
        self.inner, self.rows = inner, rows
        self.maps, self.bias = inner.maps, inner.bias
        self.changes = [None if p is None else (p.a, p.b * p.scale) for p in pairs]

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[D_out, D_in]: the sum, where all rows are read with one adapter."""
        (number, rows), *others = self.rows.groups
        assert rows is None and not others, "rows differ, so there is no one weight"
        change = self.changes[number]
        weight = self.inner.weight
        return weight if change is None else torch.addmm(weight, change[1], change[0])

    def forward(self, x: Tensor) -> Tensor:
        """[..., D_in] → [..., D_out]."""
        return self.changed(self.inner(x), x)

    def compiled(
        self, x: Tensor, linears: Sequence[Linear], *, gelu: bool = False
    ) -> Tensor | None:
        """Several maps of one input: the shared ones together, then the changes of each."""
        own = [m for m in linears if isinstance(m, AdaptedLinear)]
        if gelu or len(own) < len(linears):
            return None
        y = stacked(x, [m.inner for m in own])
        parts = y.split([shape_of(m.inner)[0] for m in own], dim=-1)
        return torch.cat([m.changed(part, x) for m, part in zip(own, parts, strict=True)], -1)

    def changed(self, y: Tensor, x: Tensor) -> Tensor:
        """W x and x → y, of the same shape as W x."""
        for number, rows in self.rows.groups:
            if (change := self.changes[number]) is None:
                continue
            a, b = (matrix.to(x.dtype) for matrix in change)
            if rows is None:
                y = y + F.linear(F.linear(x, a), b)
            else:
                more = F.linear(F.linear(x.flatten(0, -2)[rows], a), b)
                y = y.flatten(0, -2).index_add(0, rows, more).view(y.shape)
        return y


def beside(model: Any, adapters: Sequence[Pairs], rows: Rows) -> Any:
    """A model of the same weights, which are not copied, with adapters beside its maps.

    Args:
        model: It stays as it is.
        adapters: Each `check`ed.
        rows: Says which row is read with which.
    """
    shared: list[Any] = [*maps(model).values(), *model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(one): one for one in shared})
    for name, linear in maps(model).items():
        pairs = [pairs.get(name) for pairs in adapters]
        twin.set_submodule(name, AdaptedLinear(linear, pairs, rows))
    return twin.eval()


def with_adapter(model: Any, pairs: Pairs) -> Any:
    """A model of the same weights, all of whose rows are read with one adapter.

    Raises:
        ModelError: The adapter does not fit.
    """
    check(model, pairs, "adapter")
    return beside(model, [pairs], Rows([(0, None)]))


class AdaptedModel:
    """What an engine needs of a model some of whose texts are read with adapters.

    Args:
        model: Of a family with `blocks`.
        adapters: By the number, from 1, that a layout gives.
    """

    def __init__(self, model: Any, adapters: Sequence[Pairs]) -> None:
        self._rows = Rows()
        self._twin = beside(model, adapters, self._rows)
        self.new_pages, self.logits = self._twin.new_pages, self._twin.logits
        self.token_bytes: int = self._twin.token_bytes

    def hidden(self, input_ids: Tensor, *, cache: LaidOut) -> Tensor:
        """States after the final norm: [1, N] → [1, N, D]."""
        self._rows.begin(cache.layout.adapter_rows)
        states: Tensor = self._twin.hidden(input_ids, cache=cache)
        return states
