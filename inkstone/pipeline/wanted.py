"""What is to become of a model that is compressed, and whether that can be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ValidationError

from inkstone.compression import structure
from inkstone.compression.distill import LABELLED, Config
from inkstone.errors import UsageError
from inkstone.pipeline.remembered import Budget
from inkstone.training.config import TrainingConfig

PruneBy = Literal["magnitude", "movement", "2:4", "heads", "layers"]
STRUCTURES = ("heads", "layers")
TALKING = ("instructions",)  # tasks on examples whose loss is that of words


@dataclass(frozen=True)
class Wanted:
    """What is to become of a model, and by which training.

    Attributes:
        prune: Share of the weights, heads or layers that go; None: none.
        by: Which.
        distill: Shape of a student ({"n_layers": 3}) or its folder; None: no student.
        budget: Of the training.
        settings: More values, of the sections `training` and `distill`.
        device: Where to train.
    """

    prune: float | None = None
    by: PruneBy = "magnitude"
    distill: Mapping[str, Any] | Path | None = None
    budget: Budget = field(default_factory=Budget)
    settings: Mapping[str, Any] = field(default_factory=dict)
    device: str = "auto"

    def __bool__(self) -> bool:
        return self.prune is not None or self.distill is not None

    def section(self, name: str) -> dict[str, Any]:
        """The settings of one section."""
        start = f"{name}."
        return {k.removeprefix(start): v for k, v in self.settings.items() if k.startswith(start)}

    def check(self, model: Any, data: Any) -> None:
        """Refuse what cannot be, before anything is done.

        Raises:
            UsageError: Settings that do not fit together, or no data.
            ModelError: The model cannot lose what it is to lose.
        """
        self._check_settings()
        if not self:
            if self.budget or self.settings:
                raise UsageError(
                    "there is nothing to train for: --minutes, --steps and --set go with --prune "
                    "or --distill",
                    fix="to train on, use `inkstone train`",
                )
            return
        if self.prune is not None:
            self._check_pruning(model.model)
        if self.distill is not None:
            self._check_distilling(model)
        needs = "--distill" if self.distill is not None else f"--prune-by {self.by}"
        must_learn = self.distill is not None or self.by == "movement"
        if must_learn and not self.budget:
            raise UsageError(f"{needs} needs training", fix="say how long: --minutes 10")
        if data is None and (must_learn or self.budget or self.by in STRUCTURES):
            raise UsageError(
                f"{needs} needs data to {'train on' if self.budget else 'see what matters by'}",
                fix="add --data: text or examples like those that the model was trained on",
            )

    def _check_settings(self) -> None:
        for name, value in {"--minutes": self.budget.minutes, "--steps": self.budget.steps}.items():
            if value is not None and value <= 0:
                raise UsageError(f"{name} must be above zero, and is {value}")
        known = {f"training.{x}" for x in TrainingConfig.model_fields}
        known |= {f"distill.{x}" for x in Config.model_fields}
        for name in self.settings:
            if name not in known:
                raise UsageError(
                    f"no setting {name!r} here",
                    fix="such as training.lr=0.0003, distill.temperature=4, distill.alpha=0.5; the "
                    "shape of a student is given as --distill model.n_layers=3",
                )

    def _check_pruning(self, network: Any) -> None:
        assert self.prune is not None
        if self.by not in get_args(PruneBy):
            raise UsageError(
                f"nothing is pruned by {self.by!r}", fix=f"known: {', '.join(get_args(PruneBy))}"
            )
        if not 0 < self.prune < 1:
            raise UsageError(
                f"--prune is a share above 0 and below 1, and is {self.prune:g}",
                fix="--prune 0.5 sets half of the weights to zero",
            )
        if self.by == "2:4" and self.prune != 0.5:
            raise UsageError(
                f"2:4 sets two of every four weights to zero, which is no share of {self.prune:g}",
                fix="--prune 0.5 --prune-by 2:4, or another --prune-by",
            )
        if self.by in STRUCTURES and self.distill is not None:
            raise UsageError(
                f"--prune-by {self.by} and --distill both say which shape comes out",
                fix="give the student's shape alone: --distill model.n_layers=3",
            )
        if self.by == "heads":
            structure.check_heads(network)
        elif self.by == "layers":
            structure.check_layers(network)

    def _check_distilling(self, model: Any) -> None:
        task = None if model.predictor is None else model.predictor.task.NAME
        if task is not None and task not in (*LABELLED, *TALKING):
            raise UsageError(
                f"a {task} model cannot be distilled",
                fix=f"known: {', '.join((*LABELLED, *TALKING))}, language modelling and other "
                "objectives on plain text; --prune fits every task",
            )
        if isinstance(self.distill, Mapping) and not self.distill:
            raise UsageError("--distill names no shape", fix="--distill model.n_layers=3")
        try:
            Config(**self.section("distill"))
        except ValidationError as error:
            problem = error.errors()[0]
            raise UsageError(f"distill.{problem['loc'][0]}: {problem['msg']}") from error
