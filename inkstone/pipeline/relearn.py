"""A trained model learns on: by the task and the recipe that its folder remembers, on new data.

What pruning has cost is recovered so, and a student learns from its teacher. The loop, the loss and
the batches are those of any run; its checkpoints live in a private folder that is thrown away.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inkstone import device as devices
from inkstone.checkpoint import load_model, save_model
from inkstone.compression.distill import without_projection
from inkstone.compression.structure import family_of
from inkstone.errors import DataError, UsageError
from inkstone.pipeline import examples_data, objective
from inkstone.pipeline.examples_prepare import prepare as prepare_examples
from inkstone.pipeline.examples_session import Session
from inkstone.pipeline.examples_train import lessons as of_examples
from inkstone.pipeline.lessons import Lessons, Loss, of_text
from inkstone.pipeline.observer import Observer, Relay
from inkstone.pipeline.prepare import prepare as prepare_text
from inkstone.pipeline.stages import StageCache, cache_folder
from inkstone.pipeline.timing import DTYPES
from inkstone.recipe import LANGUAGE_MODELING, Recipe, from_dict
from inkstone.tasks._base import Task
from inkstone.tasks._objective import Objective
from inkstone.training.log import Hook

KEPT = ("task", "text", "words", "corpus", "training")  # sections of a recipe that still hold
GENTLY = 0.3  # of the learning rates of a training from scratch, for weights that are trained
LOOKS = 10  # evaluations of a training of so many steps
WARM_UP = 0.1  # of the steps, at most
NEVER_MINUTES = 60.0 * 24 * 365
FOREIGN = {  # of a model that was trained elsewhere
    "tokens_per_step": 4096, "micro_batch_size": 8, "optimizer": "adamw", "lr": 1e-4,
    "schedule": "cosine",
}  # fmt: skip
FOREIGN_TOKENS = 256  # a row


@dataclass(frozen=True)
class Budget:
    """How long to learn: the end that comes first.

    Attributes:
        minutes: Time, the last look at held-out data included.
        steps: Updates of the weights.
    """

    minutes: float | None = None
    steps: int | None = None

    def __bool__(self) -> bool:
        return self.minutes is not None or self.steps is not None


@dataclass(frozen=True)
class Trained:
    """What was learned for how long.

    Attributes:
        steps: Updates of the weights.
        targets: Seen in training.
        unit: What a target is, in the plural.
        seconds: It took.
        best_step: The step whose weights were kept.
        data: Last name of the data.
    """

    steps: int
    targets: int
    unit: str
    seconds: float
    best_step: int
    data: str

    def __str__(self) -> str:
        return f"{self.steps:,} steps, {self.targets:,} {self.unit} of {self.data}"


@dataclass(frozen=True)
class Course:
    """A task and its data, ready for a network to learn on.

    Attributes:
        recipe: Resolved.
        lessons: Network → what the loop gets.
        unit: What a target is, in the plural.
        task: Of labelled examples; None on plain text.
        objective: Of plain text; None to continue it.
        data: Last name of the data.
        where: Device to train on.
    """

    recipe: Recipe
    lessons: Callable[[Any], Lessons]
    unit: str
    task: Task[Any, Any] | None
    objective: Objective | None
    data: str
    where: torch.device

    def rows(self, network: Any, targets: int, at_once: int) -> list[Any]:
        """Batches of at most `at_once` rows, of about so many targets in all."""
        stream, found = self.lessons(network).stream, []
        while targets > 0:
            for part in next(stream).split(at_once):
                if targets > 0 and part.n_targets:
                    found.append(part.to(network.device))
                    targets -= part.n_targets
        return found


def course(
    model: Any,
    data: str | Path,
    budget: Budget,
    observer: Observer,
    *,
    network: Any = None,
    gently: bool = True,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
) -> Course:
    """Prepare data for a model to learn on.

    Args:
        model: An opened `api.LanguageModel`.
        data: Text or examples, as its run was trained on.
        budget: Of the training; without one the course is only read from.
        observer: Told what happens.
        network: What will learn; None: the model's own.
        gently: Lower learning rates, as its weights are trained.
        settings: Of the section `training`, which go before all else.
        device: "auto", "cpu" or "cuda".

    Raises:
        UsageError: The folder does not say what the model was trained for.
        DataError: The data does not fit the model.
    """
    where = devices.pick_device(device)
    recipe = _recipe(model, network or model.model, data, budget, where, gently, settings or {})
    stages = StageCache(cache_folder(), observer)
    name = Path(data).name
    if model.predictor is None:
        return _on_text(model, recipe, stages, where, name)
    task = model.predictor.task
    if task.REFERS:
        raise UsageError(
            f"{task.NAME} learns beside the weights that it began with, which are not here",
            fix="compress before that training, or without learning (no --minutes, no --steps)",
        )
    session = Session(model.path, stages, observer, where, time.monotonic())
    prepared = prepare_examples(recipe, session, _with_labels(recipe, task, stages))
    length = min(prepared.recipe.corpus.seq_len or 1 << 30, model.predictor.max_length)
    return Course(
        prepared.recipe, lambda network: of_examples(prepared, network, length),
        f"{task.UNIT}s", prepared.task, None, name, where,
    )  # fmt: skip


def learn(
    network: Any,
    course: Course,
    model: Any,
    folder: Path,
    observer: Observer,
    *,
    loss: Loss | None = None,
    hooks: Sequence[Hook] = (),
    finished: Callable[[], bool] = lambda: True,
) -> tuple[Any, Trained]:
    """Train a network as its course says.

    Args:
        network: It is trained in place.
        course: From `course`.
        model: The opened model that it comes from.
        folder: For checkpoints; an empty one that the caller removes.
        observer: Told what happens.
        loss: Other than the task's.
        hooks: Of the loop.
        finished: Whether the network is as it is to be; earlier ones are not kept as the best.

    Returns:
        The best network, on the CPU, and what it learned.

    Raises:
        TrainingInterrupted: A signal came; nothing is kept.
    """
    began, training = time.monotonic(), course.recipe.training
    observer.unit = course.unit
    observer.stage("train")
    network.to(course.where).compute_dtype = DTYPES[training.precision]
    lessons = course.lessons(network)
    look = lessons.evaluate

    def evaluate() -> dict[str, float]:
        assert look is not None
        scores = look()
        return scores if finished() else scores | {lessons.best_by: math.nan}

    def write(out: Path) -> None:
        with without_projection(network):
            save_model(out, network, model.tokenizer, info=model.info)

    lessons = replace(
        lessons, loss=loss or lessons.loss, evaluate=None if look is None else evaluate
    )
    folder.mkdir()
    trainer = lessons.trainer(
        network, training, folder, save_model=write, hooks=[*hooks, Relay(observer)]
    )
    result = trainer.run()
    observer.training_ended()
    best, _, _ = load_model(result.checkpoint, dtype=torch.float32)
    seconds = time.monotonic() - began
    trained = Trained(
        result.step, result.tokens, course.unit, seconds, result.best_step, course.data
    )
    observer.stage_done("train", str(trained), seconds)
    return best, trained


def _on_text(
    model: Any, recipe: Recipe, stages: StageCache, where: torch.device, name: str
) -> Course:
    if model.tokenizer is None:
        raise UsageError(f"{model.path} has no tokenizer, so it cannot learn from text")
    prepared = prepare_text(recipe, stages, where.type, model.tokenizer)
    recipe = prepared.recipe
    make = objective.maker(recipe, prepared.tokenizer)
    assert recipe.corpus.seq_len is not None
    chosen = make and make(recipe.corpus.seq_len)
    unit = "tokens" if chosen is None else f"{chosen.UNIT}s"

    def lessons(network: Any) -> Lessons:
        return of_text(recipe, prepared, network, chosen)

    return Course(recipe, lessons, unit, None, chosen, name, where)


def words_of(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """States of a causal model, [B, T, D], and the words that follow, [B, T]."""
    return model.hidden(batch.input_ids, segment_ids=batch.segment_ids), batch.targets


def _with_labels(
    recipe: Recipe, task: Task[Any, Any], stages: StageCache
) -> examples_data.Examples:
    """The examples of the data, with the labels of the model.

    Raises:
        DataError: They have a label that the model does not know.
    """
    examples = examples_data.gather(recipe, stages)
    unknown = [label for label in examples.task.labels if label not in task.ids]
    if unknown:
        raise DataError(
            f"the data has the label {unknown[0]!r}, which the model does not know",
            fix=f"its labels are {', '.join(task.labels[:20])}; train it anew for others",
        )
    counts = {label: max(1, examples.task.counts.get(label, 0)) for label in task.labels}
    own = type(task)(task.config, task.labels, counts=counts, characters=task.alphabet)
    return replace(examples, task=own)


def _recipe(
    model: Any, network: Any, data: str | Path, budget: Budget, where: torch.device, gently: bool,
    settings: Mapping[str, Any],
) -> Recipe:  # fmt: skip
    """What the folder remembers, for other data and another end."""
    saved = model.info.get("recipe")
    if saved is None and (model.predictor is not None or model.kind != "causal"):
        raise UsageError(
            f"{model.path} does not say how it was trained, so it cannot learn on",
            fix="fine-tune it first: inkstone train --data … model.pretrained=…",
        )
    values: dict[str, dict[str, Any]] = {}
    for section in KEPT:
        given = saved.get(section) if isinstance(saved, dict) else None
        values[section] = dict(given) if isinstance(given, dict) else {}
    task = model.predictor.task if model.predictor is not None else None
    if task is not None:
        settled = task.config.model_dump(mode="json", exclude_none=True)
        values["task"] = {"name": task.NAME, **settled}
    shape = {k: v for k, v in network.config.model_dump(mode="json").items() if v is not None}
    values["model"] = {"family": family_of(network), **shape}
    if task is not None:
        values["model"] = {"family": family_of(model.model), "pretrained": str(model.path)}
    values["data"] = {"path": [str(Path(data).absolute())]}
    values["corpus"].setdefault("seq_len", min(model.context, FOREIGN_TOKENS))
    pretrained = isinstance(saved, dict) and (saved.get("model") or {}).get("pretrained")
    values["training"] = _training(
        values["training"] or FOREIGN, budget, where,
        GENTLY if gently and saved is not None and not pretrained else 1.0,
    ) | {key.removeprefix("training."): value for key, value in settings.items()}  # fmt: skip
    values.setdefault("task", {}).setdefault("name", LANGUAGE_MODELING)
    return from_dict(values, where=f"{model.path}: the recipe in inkstone.json")


def _training(
    saved: Mapping[str, Any], budget: Budget, where: torch.device, rate: float
) -> dict[str, Any]:
    """The settings of a training with another end: no earlier one, no sampled words, no logs."""
    dropped = ("epochs", "early_stop_patience", "save_every", "sampled_words", "compile", "minutes",
               "max_steps", "tensorboard")  # fmt: skip
    training = {key: value for key, value in saved.items() if key not in dropped}
    dtype = devices.training_dtype(where, str(training.get("precision", "auto")))
    training |= {
        "lr": rate * training.get("lr", 3e-3),
        "matrix_lr": rate * training.get("matrix_lr", 0.02),
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "save_minutes": NEVER_MINUTES, "keep_checkpoints": 1,
    }  # fmt: skip
    training.setdefault("micro_batch_size", FOREIGN["micro_batch_size"])
    if training.get("schedule") == "noam":  # whose rate goes by a step that is long past
        training["schedule"] = "wsd"
    if budget.minutes is not None:
        training["minutes"] = float(budget.minutes)
    steps = budget.steps if budget else 1
    if steps is not None:
        training["max_steps"] = steps
        training["warmup_steps"] = min(training.get("warmup_steps", 20), int(WARM_UP * steps))
        training["eval_every"] = max(1, steps // LOOKS)
    return training
