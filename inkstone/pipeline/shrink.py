"""Pruning and distilling a trained model, with the training that either needs."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from inkstone.compression import prune, structure
from inkstone.compression.distill import LABELLED, Config, LabelDistiller, WordDistiller
from inkstone.compression.quantize import asked_for
from inkstone.compression.student import smaller, with_head_of
from inkstone.errors import ModelError, UsageError
from inkstone.pipeline.lessons import Loss
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.relearn import Course, Trained, course, learn, words_of
from inkstone.pipeline.timing import DTYPES
from inkstone.pipeline.wanted import STRUCTURES, Wanted

HEAD_TARGETS, LAYER_TARGETS = 2048, 4096  # that the importance of heads and layers is seen on
ROWS = 8  # of a batch there


@dataclass(frozen=True)
class Shrunk:
    """What came out.

    Attributes:
        network: In evaluation mode, on the CPU.
        pruned: What went, in plain values; None where nothing did.
        distilled: What was learned by; None without a student.
        trained: For how long; None without training.
    """

    network: Any
    pruned: dict[str, Any] | None
    distilled: dict[str, Any] | None
    trained: Trained | None


def shrink(
    model: Any,
    wanted: Wanted,
    data: str | Path | None,
    folder: Path,
    observer: Observer,
    *,
    reopen: Callable[[Path], Any],
    keep: Sequence[str] = (),
) -> Shrunk:
    """Make a smaller network of a model's.

    Args:
        model: An opened `api.LanguageModel`; it stays as it is.
        wanted: Checked.
        data: To train on, or to see what matters by.
        folder: For the checkpoints of the training: a new one, which the caller removes.
        observer: Told what happens.
        reopen: How a folder is opened.
        keep: Names of parts that are not pruned.

    Raises:
        InkstoneError: The data, the shape or the student do not fit.
    """
    settings = wanted.section("training")
    network = model.model if wanted.distill is None else _student(model, wanted.distill, reopen)
    lessons = None
    if data is not None and (wanted.budget or wanted.by in STRUCTURES):
        lessons = course(
            model, data, wanted.budget, observer, network=network,
            gently=wanted.distill is None, settings=settings, device=wanted.device,
        )  # fmt: skip
    if wanted.prune is not None and wanted.by in STRUCTURES:
        assert lessons is not None
        network, pruned = _restructured(network, wanted, lessons, observer)
    else:
        network, pruned = _own(network, model), None
    network.float().compute_dtype = torch.float32  # of a model in 16 bits
    if lessons is not None:
        network.to(lessons.where)
    asked_for(network, keep)  # an unknown name is told before training, not after
    hooks: list[prune.Pruner] = []
    maps: Sequence[str] = ()
    if wanted.prune is not None and pruned is None:
        choice, hooks = _with_zeros(network, wanted, keep, observer)
        maps = choice.pruned
        pruned = {"by": wanted.by, "share": wanted.prune, "maps": len(maps), "kept": choice.kept}
    distilled, trained = None, None
    if wanted.budget:
        assert lessons is not None
        loss: Loss | None = None
        if wanted.distill is not None:
            config = Config(**wanted.section("distill"))
            loss, distilled = _distiller(model, network, lessons, config), config.model_dump()
        network, trained = learn(
            network, lessons, model, folder, observer, loss=loss, hooks=hooks,
            finished=lambda: all(hook.finished for hook in hooks),
        )  # fmt: skip
        assert all(hook.finished for hook in hooks)
    if maps and pruned is not None:
        pruned["zeros"] = prune.zeros(network, maps)
    return Shrunk(network.to("cpu").eval(), pruned, distilled, trained)


def _with_zeros(
    network: Any, wanted: Wanted, keep: Sequence[str], observer: Observer
) -> tuple[prune.Choice, list[prune.Pruner]]:
    """Which maps get zeros: at once, or by what is told of the training."""
    assert wanted.prune is not None
    by: Any = wanted.by
    choice = prune.choose(network, by, keep)
    if wanted.budget:
        return choice, [prune.Pruner(network, choice.pruned, wanted.prune, by)]
    began = time.monotonic()
    observer.stage("prune")
    prune.prune(network, choice.pruned, wanted.prune, by)
    line = f"{len(choice.pruned)} maps, {len(choice.kept)} left as they are"
    observer.stage_done("prune", line, time.monotonic() - began)
    return choice, []


def _own(network: Any, model: Any) -> Any:
    """A network that may be changed: a student is one already."""
    return copy.deepcopy(network) if network is model.model else network


def _student(model: Any, given: Mapping[str, Any] | Path, reopen: Callable[[Path], Any]) -> Any:
    """What learns, as it begins."""
    torch.manual_seed(0)  # of what begins at random
    if isinstance(given, Mapping):
        return smaller(model.model, given)
    opened = reopen(given)
    if not isinstance(opened.model, torch.nn.Module):
        raise UsageError(f"{given} is no network, so it cannot learn from one")
    theirs = (m.tokenizer and m.tokenizer.fingerprint() for m in (model, opened))
    if len(set(theirs)) > 1:
        raise ModelError(
            f"{given} reads by another tokenizer than its teacher",
            fix="train one by the same tokenizer, or give a shape: --distill model.n_layers=3",
        )
    return with_head_of(model.model, opened.model)


def _restructured(
    network: Any, wanted: Wanted, lessons: Course, observer: Observer
) -> tuple[Any, dict[str, Any]]:
    """Fewer heads or layers: a network of its own, and what went."""
    assert wanted.prune is not None
    began = time.monotonic()
    observer.stage("prune")
    loss = lessons.lessons(network).loss
    c = network.config
    if wanted.by == "heads":
        rows = lessons.rows(network, HEAD_TARGETS, 1)
        importance = structure.head_importance(
            network, loss, rows, lambda done, _: observer.progress(done, len(rows), "rows")
        )
        best = structure.best_heads(importance, wanted.prune)
        small = structure.with_heads(network, best)
        if c.d_model % small.config.n_heads:
            observer.note(
                f"{small.config.n_heads} heads do not divide d_model {c.d_model}: the model opens "
                "here, but not in transformers"
            )
        gone: dict[str, Any] = {"of": c.n_heads, "left": small.config.n_heads, "which": best}
        line = f"{c.n_heads} heads a layer, {small.config.n_heads} left"
    else:
        batches = lessons.rows(network, LAYER_TARGETS, ROWS)
        kept = structure.best_layers(
            network, lambda other: _nats(other, loss, batches), wanted.prune,
            lambda done, total: observer.progress(done, total, "networks"),
        )  # fmt: skip
        small = structure.with_layers(network, kept)
        gone = {"of": c.n_layers, "left": len(kept), "which": kept}
        line = f"{c.n_layers} layers, {len(kept)} left: {', '.join(map(str, kept))}"
    observer.stage_done("prune", line, time.monotonic() - began)
    return copy.deepcopy(small), {"by": wanted.by, "share": wanted.prune, **gone}


@torch.no_grad()
def _nats(network: Any, loss: Loss, batches: Sequence[Any]) -> float:
    """Mean loss of a target."""
    network.eval()
    sums = [loss(network, batch) for batch in batches]
    return sum(float(nats) for nats, _ in sums) / max(1, sum(count for _, count in sums))


def _distiller(model: Any, student: Any, lessons: Course, config: Config) -> Loss:
    """The loss that looks at the teacher."""
    teacher = copy.copy(model.model)  # the same weights, and a dtype of its own to compute in
    if lessons.where.type != "cpu":
        teacher = copy.deepcopy(model.model).to(lessons.where)
    teacher.compute_dtype = DTYPES[lessons.recipe.training.precision]
    task = lessons.task
    if task is not None and task.NAME in LABELLED:
        several = getattr(task.config, "multi_label", False)
        return LabelDistiller(student, teacher, config, task.loss, several=several)
    reader = words_of if lessons.objective is None else lessons.objective.scored
    return WordDistiller(student, teacher, config, reader, bias=hasattr(student, "head_bias"))


def plain(shrunk: Shrunk) -> dict[str, Any]:
    """What a model folder remembers of it."""
    found = {
        "pruned": shrunk.pruned, "distilled": shrunk.distilled,
        "trained": None if shrunk.trained is None else asdict(shrunk.trained),
    }  # fmt: skip
    return {name: value for name, value in found.items() if value is not None}
