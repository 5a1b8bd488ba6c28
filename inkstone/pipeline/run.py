"""Start a run in a new folder, or continue one: prepare, plan, train, finish."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from inkstone import __version__, registry
from inkstone import device as devices
from inkstone.checkpoint import save_model
from inkstone.device import Machine
from inkstone.errors import RunError, UsageError
from inkstone.pipeline import (
    counting,
    embeddings,
    examples,
    folder,
    objective,
    pretraining,
    vectors,
)
from inkstone.pipeline.finish import finish
from inkstone.pipeline.lessons import of_text
from inkstone.pipeline.observer import Observer, Relay
from inkstone.pipeline.prepare import Prepared, keep_stdin, prepare
from inkstone.pipeline.stages import StageCache, cache_folder
from inkstone.pipeline.timing import StepTimer, build_model
from inkstone.planning.auto import plan_run
from inkstone.planning.plan import Plan
from inkstone.recipe import Recipe
from inkstone.training.loop import TrainingInterrupted, TrainingResult

__all__ = ["TrainingInterrupted", "resume", "train"]


def train(
    recipe: Recipe,
    run: Path,
    *,
    cache: Path | None = None,
    observer: Observer | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Run a recipe from its data to the report, in a new folder.

    Args:
        recipe: What is left out of it is chosen, and told to the observer with its reason.
        run: A folder that does not exist yet or is empty.
        cache: Folder of the reusable stages.
        observer: Told what happens.
        device: "auto", "cpu" or "cuda".

    Returns:
        The run's result, as in its result.json.

    Raises:
        UsageError: No data, or the run would lie inside it.
        RunError: The folder already holds a run.
        TrainingInterrupted: A signal ended training after a durable checkpoint.
    """
    observer = observer or Observer()
    on_examples = objective.on_examples(recipe)
    kind = "" if on_examples else _kind(recipe)
    if kind == "vectors":
        return vectors.train(recipe, run, cache=cache, observer=observer)
    stages = StageCache(cache_folder(cache), observer)
    folder.check_new(run, recipe.data.path)
    folder.check_outside(stages.folder, recipe.data.path, "prepared data", "--cache")
    if "-" in recipe.data.path:
        if len(recipe.data.path) > 1:
            raise UsageError("stdin (-) cannot be mixed with other data")
        recipe = recipe.with_data([keep_stdin(stages, ".jsonl" if on_examples else ".txt")])
    began = time.monotonic()
    where = devices.pick_device(device)
    devices.tune_allocator()
    if on_examples:
        session = examples.Session(run, stages, observer, where, began)
        return examples.train(recipe, session, _header(run))
    _check_text(recipe)
    prepared = prepare(recipe, stages, where.type)
    if kind == "ngram":
        info = provenance(prepared.recipe, prepared)
        return counting.train(prepared, run, _header(run), info, observer)
    observer.stage("plan")
    machine = devices.measure(str(where))
    planned_at = time.monotonic()
    planned = plan(prepared, machine, where)
    line = f"chosen for this text and this machine ({machine.peak_gflops:,.0f} GFLOP/s measured)"
    observer.stage_done("plan", line, time.monotonic() - planned_at)
    choices = [*prepared.plan.choices, *planned.choices]
    observer.choices(choices)
    resolved = prepared.recipe.with_values(planned.values())
    notes = {c.key: c.reason for c in choices if c.chosen}
    folder.check_new(run, recipe.data.path)
    folder.create(
        run,
        _header(run) + resolved.to_toml(notes),
        data={
            "hashes": prepared.hashes,
            "statistics": prepared.statistics.to_dict(),
            "line": prepared.statistics.line(),
            **objective.description(recipe),
        },
        plan={
            "choices": [asdict(x) for x in choices],
            "predicted": planned.predicted,
            "machine": machine.to_dict(),
        },
    )
    return _train_and_finish(resolved, prepared, run, machine, where, observer, began)


def resume(
    run: Path,
    *,
    cache: Path | None = None,
    observer: Observer | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Continue a run exactly as it was started.

    Raises:
        RunError: The folder holds no run, or its data or tokenizer has changed since.
    """
    observer = observer or Observer()
    recipe, record = folder.read(run)
    result = folder.read_json(run / folder.RESULT)
    if result:
        observer.note(f"{run} is finished; nothing is left to do")
        return result
    on_examples = objective.on_examples(recipe)
    kind = "" if on_examples else _kind(recipe)
    if kind == "vectors":
        return vectors.resume(run, recipe, record, cache=cache, observer=observer)
    stages = StageCache(cache_folder(cache), observer)
    began = time.monotonic()
    where = devices.pick_device(device)
    devices.tune_allocator()
    if on_examples:
        session = examples.Session(run, stages, observer, where, began)
        return examples.resume(recipe, session, record.get("hashes", {}))
    prepared = prepare(recipe, stages, where.type)
    _compare(record.get("hashes", {}), prepared.hashes, run)
    if kind == "ngram":
        return counting.count(recipe, prepared, run, provenance(recipe, prepared), observer)
    machine = devices.measure(str(where))
    return _train_and_finish(recipe, prepared, run, machine, where, observer, began)


def _check_text(recipe: Recipe) -> None:
    """Refuse settings that say something about labelled examples only.

    Raises:
        UsageError: One of them is set.
    """
    given = {
        "data.valid": recipe.data.valid, "data.test": recipe.data.test,
        "model.pretrained": recipe.model.pretrained, "training.epochs": recipe.training.epochs,
        "training.examples_per_step": recipe.training.examples_per_step,
        "data.replay": recipe.data.replay, "evaluation.remember": recipe.evaluation.remember,
        "lora.rank": recipe.lora.rank,
    }  # fmt: skip
    for name, value in given.items():
        if value:
            raise UsageError(
                f"{name} is for tasks on labelled examples, and this run learns from plain text",
                fix="leave it out, or name a task: task.name=classification",
            )


def _kind(recipe: Recipe) -> str:
    """What sort of model the recipe's family is.

    Raises:
        UsageError: One that does not learn from plain text.
    """
    kind = str(registry.load("models", recipe.model.family).KIND)
    if objective.module_of(recipe) is not None:
        return kind
    if kind not in ("causal", "ngram", "vectors"):
        raise UsageError(
            f"model.family = {recipe.model.family!r} does not learn to continue text",
            fix="name what it learns: task.name=masked_language_modeling, span_corruption or "
            "denoising; or a task on labelled examples, such as task.name=classification",
        )
    return kind


def plan(prepared: Prepared, machine: Machine, where: torch.device) -> Plan:
    """What to train on a prepared text, and for how long."""
    recipe = prepared.recipe
    given = recipe.to_dict(only_given=True)
    dtype = devices.training_dtype(where, recipe.training.precision)
    make = objective.maker(recipe, prepared.tokenizer)
    family = registry.load("models", recipe.model.family)
    early = make and make(recipe.corpus.seq_len or 64)  # the length is not settled yet
    return plan_run(
        prepared.facts,
        machine,
        given,
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        time_step=StepTimer(recipe.model.family, where, make=make),
        fixed=objective.fixed_fields(recipe, early) if early else None,
        density=early.density if early else 1.0,
        flops=make and (lambda config, length: make(length).flops_per_token(family, config)),
    )


def _train_and_finish(
    recipe: Recipe,
    prepared: Prepared,
    run: Path,
    machine: Machine,
    where: torch.device,
    observer: Observer,
    began: float,
) -> dict[str, Any]:
    observer.stage("train")
    started = time.monotonic()
    torch.manual_seed(recipe.training.seed)
    assert recipe.training.tokens_per_step and recipe.corpus.seq_len
    model = build_model(recipe.model.family, recipe.model.fields, recipe.training.precision, where)
    embeddings.begin(model, recipe, prepared.tokenizer, run, observer)
    info = provenance(recipe, prepared)
    make = objective.maker(recipe, prepared.tokenizer)
    chosen = make and make(recipe.corpus.seq_len)
    lessons = of_text(recipe, prepared, model, chosen)
    if chosen is not None:
        observer.unit = f"{chosen.UNIT}s"
    trainer = lessons.trainer(
        model,
        recipe.training,
        run,
        save_model=lambda out: save_model(out, model, prepared.tokenizer, info=info),
        hooks=[Relay(observer)],
        peak_flops=machine.matmul_gflops[recipe.training.precision] * 1e9,
    )
    result = trainer.run()
    observer.training_ended()
    observer.stage_done("train", _training_summary(result), time.monotonic() - started)
    if chosen is not None:
        return pretraining.finish(
            chosen, recipe, prepared, run, where, result, info, observer, began
        )
    return finish(recipe, prepared, run, machine, where, result, info, observer, began)


def provenance(recipe: Recipe, prepared: Prepared) -> dict[str, Any]:
    """What a model folder remembers; of the data's place only the last name."""
    remembered = recipe.to_dict()
    if paths := remembered.get("data", {}).get("path"):
        remembered["data"]["path"] = [Path(p).name for p in paths]
    if recipe.model.embeddings is not None:
        remembered["model"]["embeddings"] = Path(recipe.model.embeddings).name
    return {
        "task": recipe.task.name,
        **({"task_settings": recipe.task.fields} if recipe.task.fields else {}),
        "dialogue_trained": False,
        "recipe": remembered,
        "data": {"hashes": prepared.hashes, "statistics": prepared.statistics.to_dict()},
    }


def _training_summary(result: TrainingResult) -> str:
    best = (
        f"; best held-out loss {result.best_score:.3f} at step {result.best_step:,}"
        if result.best_score is not None
        else ""
    )
    ended = ", stopped early: held-out loss no longer fell" if result.reason != "finished" else ""
    return f"{result.step:,} steps, {result.tokens:,} tokens{best}{ended}"


def _compare(then: dict[str, str], now: dict[str, str], run: Path) -> None:
    """What training reads must be the same; other text that gives the same tokens is no change."""
    names = {"text": "the text or its cleaning", "tokenizer": "the tokenizer",
             "train": "the tokens", "valid": "the held-out tokens",
             "embeddings": "the word vectors"}  # fmt: skip
    changed = [k for k in sorted(then) if then[k] != now.get(k)]
    if set(changed) - {"text"}:
        listed = ", ".join(names.get(k, k) for k in changed)
        raise RunError(
            f"{run} cannot be continued: {listed} changed since it began",
            fix="put the data back as it was, or start a new run with --run",
        )


def _header(run: Path) -> str:
    return (
        f"# The resolved recipe of {run.name}, written by Inkstone {__version__}.\n"
        f"# Comments say why a value was chosen. Run it again: inkstone train {run}/recipe.toml\n\n"
    )
