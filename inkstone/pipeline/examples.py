"""A run on labelled examples: read → tokenizer → encode → plan → train → evaluate → report.

Routed here by the recipe's task. A family of `KIND` "linear" or "markov" is fitted at once; the
others are trained by the same loop as language models.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from inkstone import device as devices
from inkstone.errors import RunError
from inkstone.inference.predict import FITTED
from inkstone.pipeline import folder
from inkstone.pipeline.examples_finish import finish
from inkstone.pipeline.examples_prepare import prepare
from inkstone.pipeline.examples_session import Prepared, Session
from inkstone.pipeline.examples_train import fit, learn, plan, summary
from inkstone.recipe import Recipe


def train(recipe: Recipe, session: Session, header: str) -> dict[str, Any]:
    """Run a recipe whose task has labelled examples, in a new folder.

    Args:
        recipe: What is left out of it is chosen.
        session: Where, and for whom.
        header: Comment above the resolved recipe.

    Returns:
        The run's result, as in its result.json.

    Raises:
        InkstoneError: The data, the recipe or the folder do not allow it.
    """
    observer = session.observer
    prepared = prepare(recipe, session)
    machine = devices.measure(str(session.where))
    choices = list(prepared.plan.choices)
    predicted: dict[str, float] = {}
    resolved = prepared.recipe
    if prepared.kind not in FITTED:
        observer.stage("plan")
        planned_at = time.monotonic()
        planned = plan(prepared, machine, session.where)
        line = f"chosen for these examples and this machine ({machine.peak_gflops:,.0f} GFLOP/s)"
        observer.stage_done("plan", line, time.monotonic() - planned_at)
        choices += planned.choices
        predicted, resolved = planned.predicted, resolved.with_values(planned.values())
    observer.choices(choices)
    if prepared.examples.overlap:
        observer.note(f"{prepared.examples.overlap:,} of the texts that are scored are trained on")
    notes = {c.key: c.reason for c in choices if c.chosen}
    folder.create(
        session.run,
        header + resolved.to_toml(notes),
        data={
            "task": prepared.task.NAME,
            "unit": prepared.task.UNIT,
            "hashes": prepared.hashes,
            "line": prepared.examples.line,
        },
        plan={
            "choices": [asdict(x) for x in choices],
            "predicted": predicted,
            "machine": machine.to_dict(),
        },
    )
    return _learn(replace(prepared, recipe=resolved), session)


def resume(recipe: Recipe, session: Session, hashes: Mapping[str, str]) -> dict[str, Any]:
    """Continue a run exactly as it was started.

    Raises:
        RunError: Its examples or its tokenizer have changed since.
    """
    prepared = prepare(recipe, session)
    now = prepared.hashes
    changed = [name for name in sorted(hashes) if hashes[name] != now.get(name)]
    if changed:
        raise RunError(
            f"{session.run} cannot be continued: {', '.join(changed)} changed since it began",
            fix="put the data back as it was, or start a new run with --run",
        )
    return _learn(prepared, session)


def _learn(prepared: Prepared, session: Session) -> dict[str, Any]:
    """Train or fit, then score and save."""
    observer = session.observer
    observer.unit = f"{prepared.task.UNIT}s"
    observer.stage("train")
    started = time.monotonic()
    trained = None
    if prepared.kind in FITTED:
        predictor = fit(prepared, observer)
        line = f"fitted to {prepared.examples.counts['train']:,}"
    else:
        trained, predictor = learn(prepared, session)
        line = summary(trained, prepared.task)
    seconds = time.monotonic() - started
    observer.stage_done("train", line, seconds)
    return finish(prepared, session, predictor, trained, seconds)
