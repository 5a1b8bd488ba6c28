"""A small network that learns from a large one (Hinton et al. 2015; Sanh et al. 2019).

    L = α · hard + (1 − α) · T² · KL(teacher ‖ student) + β · apart

`hard` is the task's own loss, the divergence is that of words or labels at temperature T, and
`apart` is how far the states that they are scored from stand apart: 1 − cosine (Sanh et al. 2019,
section 3) or the mean square (Jiao et al. 2020, equation 8), through a learned map where the widths
differ. All are sums over targets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from inkstone.config import Section
from inkstone.nn.divergence import Scored, chunked_divergence, divergence
from inkstone.nn.linear import Linear
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.nn.packing import Packing

PROJECTION = "to_teacher"  # the map between widths, a part of the student while it learns
LABELLED = ("classification", "tagging")  # tasks whose loss is one call of the model
Loss = Callable[[Any, Any], tuple[Tensor, int]]
Reader = Callable[[Any, Any], tuple[Tensor, Tensor]]


class Config(Section):
    """What a student learns by.

    Attributes:
        alpha: α, the weight of the right answers; the teacher's weigh 1 − α.
        temperature: T: the higher, the more of the teacher's second choices is learned.
        beta: β, the weight of the states.
        match: How states are compared.
    """

    alpha: float = Field(default=0.3, ge=0.0, le=1.0)
    temperature: float = Field(default=2.0, gt=0.0, le=100.0)
    beta: float = Field(default=0.15, ge=0.0, le=1000.0)
    match: Literal["cosine", "mse"] = "cosine"


class _Distiller:
    """A loss of the student that looks at the teacher.

    Args:
        student: Gets a map to the teacher's width where that is another and β is not 0.
        teacher: It stays as it is.
        config: Weights.
        widths: Of the states that are compared, D and D'.
    """

    def __init__(self, student: Any, teacher: Any, config: Config, widths: tuple[int, int]) -> None:
        self.teacher, self.config = teacher.eval(), config
        d_in, d_out = widths
        if config.beta and d_in != d_out:
            projection = Linear(d_in, d_out).to(student.device)
            nn.init.normal_(projection.weight, std=d_in**-0.5)
            student.add_module(PROJECTION, projection)

    def _apart(self, student: Any, states: Tensor, wanted: Tensor) -> Tensor:
        """How far states [N, D] are from the teacher's [N, D'], summed over rows."""
        if hasattr(student, PROJECTION):
            states = getattr(student, PROJECTION)(states)
        ours, theirs = states.float(), wanted.float()
        if self.config.match == "mse":
            return (ours - theirs).square().mean(-1).sum()
        return (1 - F.cosine_similarity(ours, theirs, dim=-1)).sum()

    def _sum(self, hard: Tensor, soft: Tensor, apart: Tensor | None) -> Tensor:
        c = self.config
        total = c.alpha * hard + (1 - c.alpha) * soft
        return total if apart is None else total + c.beta * apart


class WordDistiller(_Distiller):
    """Of networks that score words.

    Args:
        reader: (model, batch) → states that words are scored from, [..., D], and the right words,
            [...], IGNORE_INDEX where none is wanted.
        bias: Whether the head has one (`head_bias`).
    """

    def __init__(
        self, student: Any, teacher: Any, config: Config, reader: Reader, *, bias: bool
    ) -> None:
        widths = student.head_weight.shape[1], teacher.head_weight.shape[1]
        super().__init__(student, teacher, config, widths)
        self.reader, self.bias = reader, bias

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Summed loss, and how many targets it is of."""
        ours, targets = self._read(model, batch)
        with torch.no_grad():  # tensors of inference mode may not be seen by training again
            theirs, _ = self._read(self.teacher, batch)
        hard, count = chunked_cross_entropy(ours.states, ours.weight, targets, bias=ours.bias)
        extra = model.extra_loss()
        hard = hard if extra is None else hard + extra * count
        soft = chunked_divergence(ours, theirs, self.config.temperature)
        apart = self._apart(model, ours.states, theirs.states) if self.config.beta else None
        return self._sum(hard, soft, apart), count

    def _read(self, model: Any, batch: Any) -> tuple[Scored, Tensor]:
        """The rows that have a target, and those targets."""
        states, targets = self.reader(model, batch)
        states, targets = states.flatten(0, -2), targets.flatten()
        counted = targets != IGNORE_INDEX
        bias = model.head_bias if self.bias else None
        return Scored(states[counted], model.head_weight, bias), targets[counted]


class LabelDistiller(_Distiller):
    """Of networks that score labels of texts or of tokens.

    Args:
        task_loss: The task's own; it calls the model once.
        several: Whether a text may have several labels, each a yes or no.
    """

    def __init__(
        self, student: Any, teacher: Any, config: Config, task_loss: Loss, *, several: bool
    ) -> None:
        maps = student.classifier, teacher.classifier
        super().__init__(
            student, teacher, config, (maps[0].weight.shape[1], maps[1].weight.shape[1])
        )
        self.task_loss, self.several = task_loss, several

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, int]:
        """Summed loss, and how many targets it is of."""
        with _overheard(model) as ours:
            hard, count = self.task_loss(model, batch)
        with torch.no_grad(), _overheard(self.teacher) as theirs:
            self.teacher(**batch.inputs)
        soft = self._soft(ours["scores"], theirs["scores"], batch.targets)
        apart = None
        if self.config.beta:
            apart = self._apart(model, *(self._counted(x["states"], batch) for x in (ours, theirs)))
        return self._sum(hard, soft, apart), count

    def _counted(self, states: Tensor, batch: Any) -> Tensor:
        """Of texts all states [B, D]; of tokens those that have a label, [N, D]."""
        targets = batch.targets
        if self.several or targets.ndim == 1:
            return states
        if states.ndim == 2:  # tokens without padding
            targets = Packing.of(batch.input_ids, batch.attention_mask).pack(targets)
        return states[targets != IGNORE_INDEX]

    def _soft(self, scores: Tensor, wanted: Tensor, targets: Tensor) -> Tensor:
        """T² · KL over the targets: scores [B, L] of texts or [B, T, L] of tokens."""
        if self.several:  # two answers a label, averaged over labels as the hard loss is
            ours, theirs = (torch.stack((x, torch.zeros_like(x)), -1) for x in (scores, wanted))
            return divergence(ours, theirs, self.config.temperature).mean(1).sum()
        counted = targets != IGNORE_INDEX
        return divergence(scores[counted], wanted[counted], self.config.temperature).sum()


@contextlib.contextmanager
def _overheard(model: Any) -> Iterator[dict[str, Tensor]]:
    """Within the block: what labels are scored from, and their scores, of the last call."""
    heard: dict[str, Tensor] = {}
    hooks = [
        model.register_forward_hook(lambda module, given, out: heard.update(scores=out)),
        model.classifier.register_forward_pre_hook(
            lambda module, given: heard.update(states=given[0])
        ),
    ]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def without_projection(student: nn.Module) -> Iterator[None]:
    """Within the block a student is the network that will be used."""
    projection = student._modules.pop(PROJECTION, None)
    try:
        yield
    finally:
        if projection is not None:
            student.add_module(PROJECTION, projection)
