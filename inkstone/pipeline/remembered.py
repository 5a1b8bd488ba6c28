"""The recipe that a model's folder remembers, for other data and another end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inkstone import device as devices
from inkstone.compression.structure import family_of
from inkstone.errors import UsageError
from inkstone.recipe import LANGUAGE_MODELING, Recipe, from_dict

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


def recipe_of(
    model: Any, network: Any, data: str | Path, budget: Budget, where: torch.device, gently: bool,
    settings: Mapping[str, Any],
) -> Recipe:  # fmt: skip
    """The recipe by which a model learns on.

    Args:
        model: An opened `api.LanguageModel`.
        network: What will learn: the model's own, or another.
        data: As its run was trained on.
        budget: Of the training; without one, one step.
        where: Device to train on.
        gently: Lower learning rates, as the weights are trained.
        settings: Of the section `training`, which go before all else.

    Raises:
        UsageError: The folder does not say what the model was trained for.
        RecipeError: What it says does not hold here, or a setting does not.
    """
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
