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
from inkstone.errors import DataError, UsageError
from inkstone.pipeline import examples_data, objective
from inkstone.pipeline.examples_prepare import prepare as prepare_examples
from inkstone.pipeline.examples_session import Session
from inkstone.pipeline.examples_train import lessons as of_examples
from inkstone.pipeline.lessons import Lessons, Loss, of_text
from inkstone.pipeline.observer import Observer, Relay
from inkstone.pipeline.prepare import prepare as prepare_text
from inkstone.pipeline.remembered import Budget, recipe_of
from inkstone.pipeline.stages import StageCache, cache_folder
from inkstone.pipeline.timing import DTYPES
from inkstone.recipe import Recipe
from inkstone.tasks._base import Task
from inkstone.tasks._objective import Objective
from inkstone.training.log import Hook


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
    recipe = recipe_of(model, network or model.model, data, budget, where, gently, settings or {})
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
