"""The objective of a run on plain text that is not language modelling, as the recipe names it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from inkstone import registry
from inkstone.corpora.shards import Corpus
from inkstone.errors import UsageError
from inkstone.planning.plan import Choice, Plan
from inkstone.recipe import LANGUAGE_MODELING, Recipe
from inkstone.tasks._objective import Objective
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import Tokenizer


def on_examples(recipe: Recipe) -> bool:
    """Whether the recipe's task learns from labelled examples."""
    return hasattr(registry.load("tasks", recipe.task.name), "Task")


def module_of(recipe: Recipe) -> ModuleType | None:
    """The file of the objective; None for language modelling, which needs no corruption.

    Raises:
        UsageError: The family does not learn by it.
    """
    if recipe.task.name == LANGUAGE_MODELING:
        return None
    module = registry.load("tasks", recipe.task.name)
    kinds = module.Objective.KINDS
    if registry.load("models", recipe.model.family).KIND not in kinds:
        names = registry.names("models")
        fitting = [n for n in names if getattr(registry.load("models", n), "KIND", "") in kinds]
        raise UsageError(
            f"model.family {recipe.model.family!r} does not learn by {recipe.task.name}",
            fix=f"families that do: {', '.join(fitting)}",
        )
    if recipe.corpus.mask_documents:
        raise UsageError(
            f"corpus.mask_documents is for language modelling, and this run is {recipe.task.name}",
            fix="leave it out",
        )
    return module


def description(recipe: Recipe) -> dict[str, str]:
    """What a report calls the objective and its targets; nothing for language modelling."""
    module = module_of(recipe)
    return (
        {}
        if module is None
        else {"objective": module.Objective.NAME, "unit": module.Objective.UNIT}
    )


def choose_tokenizer(recipe: Recipe, plan: Plan) -> tuple[Recipe, Roles | None]:
    """Settle what tokenizer the objective needs, and with which control tokens."""
    module = module_of(recipe)
    if module is None:
        return recipe, None
    given = recipe.to_dict(only_given=True).get("tokenizer", {})
    if "kind" not in given:
        kind = module.Objective.tokenizer_kind(registry.load("models", recipe.model.family))
        reason = f"what {recipe.model.family} was published with"
        plan.choices.append(Choice("tokenizer.kind", kind, reason))
        if kind == "wordpiece" and "lowercase" not in given:
            reason = "a small model learns more of a word that is always written alike"
            plan.choices.append(Choice("tokenizer.lowercase", True, reason))
        recipe = recipe.with_values(plan.values())
    return recipe, module.Objective.roles(recipe.tokenizer.kind)


def maker(recipe: Recipe, tokenizer: Tokenizer) -> Callable[[int], Objective] | None:
    """Row length → the objective; None for language modelling."""
    module = module_of(recipe)
    if module is None:
        return None
    config = module.Config(**recipe.task.fields)

    @functools.lru_cache(maxsize=4)
    def make(seq_len: int) -> Objective:
        objective: Objective = module.Objective(config, tokenizer, seq_len)
        if objective.room < 2:
            raise UsageError(
                f"corpus.seq_len = {seq_len} leaves no room for text between control tokens",
                fix="set it to 16 or more",
            )
        return objective

    return make


def fixed_fields(recipe: Recipe, objective: Objective) -> dict[str, Any]:
    """What the model's configuration must hold.

    Raises:
        UsageError: The recipe says otherwise.
    """
    fixed = objective.fields(registry.load("models", recipe.model.family))
    for name, value in fixed.items():
        given = recipe.model.fields.get(name, value)
        if given != value:
            raise UsageError(
                f"model.{name} = {given!r}, but {objective.NAME} needs {value!r}",
                fix=f"leave model.{name} out",
            )
    return fixed


def training_flops(objective: Objective, recipe: Recipe) -> float:
    """Operations of training for one target: three forward passes (Kaplan et al. 2020, §2.1)."""
    family = registry.load("models", recipe.model.family)
    config = family.Config(**recipe.model.fields)
    return 3.0 * objective.flops_per_token(family, config) / objective.density


def scorer(
    objective: Objective, model: Any, valid: Corpus | None, live_tokens: int | None
) -> Callable[[], dict[str, float]] | None:
    """Scores of held-out text during training; None where nothing is held out."""
    if valid is None or valid.n_tokens < 2:
        return None

    def score() -> dict[str, float]:
        scores = objective.evaluate(model, objective.held_out(valid, live_tokens)).to_dict()
        return {name: value for name, value in scores.items() if name != "perplexity"}

    return score
