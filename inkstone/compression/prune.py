"""Weights set to zero: the smallest ones, those that training moves to zero, two of every four.

A share S of the weights of every map gets the mask M, and the network computes with W ⊙ M.

- magnitude: M keeps the largest |w| (Han et al. 2015, "Learning both Weights and Connections …").
- movement: M keeps the largest score −Σ w · ∂L/∂w, summed over the steps of a training: a weight
  scores by moving away from zero (Sanh et al. 2020, "Movement Pruning", section 4).
- 2:4: of every four inputs of a row M keeps the two largest |w| (Mishra et al. 2021, section 3).

In a training the share grows by a cube, fast at first (Zhu & Gupta 2017, equation 1):

    s(t) = S (1 − (1 − (t − t₀) / (t₁ − t₀))³)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from inkstone.compression.quantize import ASKED_FOR, asked_for, check_floats, weighted
from inkstone.errors import ModelError
from inkstone.models._base import OUTPUTS
from inkstone.nn.linear import Linear
from inkstone.training.log import Hook

By = Literal["magnitude", "movement", "2:4"]
FOUR, TWO = 4, 2
BEGIN, END = 0.1, 0.6  # t₀ and t₁, as shares of the training; what is left of it heals
STAGES = 100  # of a training; masks are drawn anew once in each
SAID_LAST = tuple(name.removesuffix(".") for name in OUTPUTS)


@dataclass(frozen=True)
class Choice:
    """What becomes of each map of a network.

    Attributes:
        pruned: Names of the maps that get zeros.
        kept: Those that do not, and why.
    """

    pruned: tuple[str, ...]
    kept: dict[str, str]


def choose(model: nn.Module, by: By, keep: Sequence[str] = ()) -> Choice:
    """Which maps get zeros: all but those onto words or labels. Tables have none.

    Args:
        model: Any network.
        by: How weights are chosen.
        keep: Names of parts that stay as they are, as in `quantize.choose`.

    Raises:
        UsageError: `keep` names nothing.
        ModelError: There is no map to prune, or weights were rounded already.
    """
    check_floats(model)
    wanted = asked_for(model, keep)
    pruned, kept = [], {}
    for name, module in weighted(model).items():
        if not isinstance(module, Linear):
            continue
        if name in wanted:
            kept[name] = ASKED_FOR
        elif name.rpartition(".")[2] in SAID_LAST:
            kept[name] = "onto words or labels"
        elif by == "2:4" and module.weight.shape[1] % FOUR:
            kept[name] = f"rows of {module.weight.shape[1]}, which {FOUR} does not divide"
        else:
            pruned.append(name)
    if not pruned:
        raise ModelError("this model has no maps that could get zeros")
    return Choice(tuple(pruned), kept)


def mask(scores: Tensor, share: float, by: By) -> Tensor:
    """Where weights stay: [d_out, d_in] bool.

    Args:
        scores: [d_out, d_in]; the lowest are cut off.
        share: Of zeros, which come out exactly, rounded to a whole weight. 2:4 has always a half.
        by: Over the whole map, or over every four inputs.
    """
    if by == "2:4":
        fours = scores.unflatten(1, (-1, FOUR))
        best = fours.topk(TWO, dim=2).indices
        return torch.zeros_like(fours, dtype=torch.bool).scatter_(2, best, True).flatten(1)
    lowest = scores.flatten().topk(round(share * scores.numel()), largest=False, sorted=False)
    stays = torch.ones(scores.numel(), dtype=torch.bool, device=scores.device)
    stays[lowest.indices] = False
    return stays.view_as(scores)


@torch.no_grad()
def prune(model: nn.Module, names: Sequence[str], share: float, by: By) -> None:
    """Set weights of these maps to zero, at once and by their size."""
    for name in names:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        weight.mul_(mask(weight.abs(), share, by))


def share_at(done: float, share: float) -> float:
    """How many weights are zero when a share `done` of a training is behind."""
    way = min(1.0, max(0.0, (done - BEGIN) / (END - BEGIN)))
    return share * (1 - (1 - way) ** 3)


class Pruner(Hook):
    """Keeps zeros in place while a network learns, and makes them more and more.

    What is cut off is remembered as it was and does not learn, so that it may come back when others
    turn out to matter less. 2:4 is cut once, before the first step.

    Args:
        model: In training.
        names: Of the maps, from `choose`.
        share: S.
        by: By what.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], share: float, by: By) -> None:
        self.share, self.by = share, by
        self._weights: dict[str, nn.Parameter] = {}
        for name in names:
            weight = model.get_submodule(name).weight
            assert isinstance(weight, nn.Parameter)
            self._weights[name] = weight
        self._whole = {n: w.detach().clone() for n, w in self._weights.items()}
        self._masks = {n: torch.ones_like(w, dtype=torch.bool) for n, w in self._weights.items()}
        self._scores: dict[str, Tensor] = {}
        if by == "movement":
            self._scores = {n: torch.zeros_like(w) for n, w in self._whole.items()}
        self._stage, self.zeros = 0, 0.0
        if by == "2:4":
            self._draw(share)

    @property
    def finished(self) -> bool:
        """Whether all zeros are there."""
        return self.zeros >= self.share

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """What decides, by map: [d_out, d_in]; the lowest are cut off."""
        return self._scores or {n: w.abs() for n, w in self._whole.items()}

    @torch.no_grad()
    def on_gradients(self, scale: float) -> None:
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            if name in self._scores:  # a weight that is cut off scores on: its gradient is there
                self._scores[name].addcmul_(self._whole[name], weight.grad, value=-1 / scale)
            weight.grad.mul_(self._masks[name])

    @torch.no_grad()
    def on_update(self, done: float) -> None:
        for name, weight in self._weights.items():
            torch.where(self._masks[name], weight, self._whole[name], out=self._whole[name])
        stage = int(STAGES * done)
        if stage > self._stage and not self.finished:
            self._stage = stage
            self._draw(share_at(done, self.share))
        else:
            self._apply()

    @torch.no_grad()
    def _draw(self, zeros: float) -> None:
        """New masks, with so many zeros."""
        for name, scores in self.scores.items():
            self._masks[name] = mask(scores, zeros, self.by)
        self.zeros = zeros
        self._apply()

    def _apply(self) -> None:
        for name, weight in self._weights.items():
            weight.copy_(self._whole[name] * self._masks[name])


def zeros(model: nn.Module, names: Sequence[str] | None = None) -> float:
    """Share of the weights of these maps that are zero; None: of all maps and tables."""
    found = weighted(model)
    weights = (found[name].weight for name in (found if names is None else names))
    total = none = 0
    for weight in weights:
        total += weight.numel()
        none += weight.numel() - int(torch.count_nonzero(weight))
    return none / max(1, total)
