"""After training on examples: score the best model, save it with its task, write the report."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from inkstone import __version__
from inkstone.checkpoint import atomic_folder
from inkstone.errors import TokenizerError, UsageError
from inkstone.evaluation.examples import baseline, evaluate
from inkstone.evaluation.perplexity import perplexity
from inkstone.evaluation.scores import Score
from inkstone.files import write_json
from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.predict import FITTED, Predictor
from inkstone.pipeline import adapting
from inkstone.pipeline.examples_begin import begin, predictor_of
from inkstone.pipeline.examples_session import Prepared, Session, provenance, save
from inkstone.pipeline.finish import conclude
from inkstone.pipeline.folder import PLAN, read_json
from inkstone.recipe import Recipe
from inkstone.tasks._base import Task
from inkstone.text.config import TextConfig
from inkstone.text.readers import find_files, read
from inkstone.training.loop import TrainingResult


def finish(
    prepared: Prepared,
    session: Session,
    predictor: Predictor[Any, Any],
    trained: TrainingResult | None,
    training_s: float,
) -> dict[str, Any]:
    """Turn the best model into `run/model`, and the run into scores and a report.

    Args:
        prepared: The examples; the test part is scored, or the held-out one.
        session: Where, and for whom.
        predictor: The best model.
        trained: How training ended; None where the model was fitted.
        training_s: How long it took.

    Returns:
        The result, as written to result.json.
    """
    observer, examples, run = session.observer, prepared.examples, session.run
    observer.stage("evaluate")
    started = time.monotonic()
    part = examples.scored
    total = examples.counts[part]
    report = evaluate(
        predictor, examples.part(part),
        progress=lambda done: observer.progress(done, total, "examples"),
    )  # fmt: skip
    simplest = baseline(prepared.task, examples.part(part)) or _before(prepared, session, part)
    remembered = _remembered(prepared, session, predictor)
    seconds = time.monotonic() - started
    shown = [Score(**row) for row in report["scores"]]
    line = ", ".join(f"{x.name.replace('_', ' ')} {x.shown}" for x in shown)
    observer.stage_done("evaluate", f"{part}: {line}", seconds)
    info = provenance(prepared, predictor.max_length)
    info["scores"] = {"part": part, **{x.name: x.value for x in shown}}
    _save(prepared, session, predictor, info)
    steps = trained.step if trained else 0
    result = {
        "run": str(run),
        "task": prepared.task.NAME,
        "family": prepared.recipe.model.family,
        "model": str(run / "model"),
        "report": str(run / "report.html"),
        "adapter": adapting.keep(trained.checkpoint, run) if trained else None,
        "reason": trained.reason if trained else "finished",
        "steps": steps,
        "best_step": trained.best_step if trained else 0,
        "targets": trained.tokens if trained else examples.counts["train"],
        "parameters": _parameters(predictor),
        "counts": examples.counts,
        "part": part,
        "baseline": simplest,
        **report,
        "remembered": remembered,
        "samples": _samples(prepared, predictor, info),
        "time": {
            "planned_training_s": read_json(run / PLAN).get("predicted", {}).get("training_s", 0.0),
            "training_s": trained.elapsed_s if trained else training_s,
            "evaluation_s": seconds,
            "examples_per_s": total / max(1e-9, seconds),
            "total_s": time.monotonic() - session.began,
        },
        "statistics": examples.line,
    }
    conclude(run, result, observer)
    return result


def _before(prepared: Prepared, session: Session, part: str) -> dict[str, Any] | None:
    """What the pretrained weights score before training, where they can do the task at all.

    A score that compares with them is left out: the task that is asked here has no reference.
    """
    task = prepared.task
    if prepared.pretrained is None or not task.TALKS:
        return None
    start = predictor_of(prepared, begin(prepared, session))
    start = replace(start, task=type(task)(task.config, task.labels))
    rows = evaluate(start, prepared.examples.part(part), resamples=0)["scores"]
    return {"name": "before training", **{row["name"]: row["value"] for row in rows}}


def check_remember(recipe: Recipe, task: Task[Any, Any]) -> None:
    """Find out before training whether the text for `evaluation.remember` can be scored after it.

    Raises:
        UsageError: The task's models do not continue text.
        DataError: The text is not there.
    """
    if not task.TALKS:
        raise UsageError(
            f"evaluation.remember is for tasks on conversations, and this run is {task.NAME}",
            fix="leave it out",
        )
    find_files(recipe.evaluation.remember)


def _remembered(
    prepared: Prepared, session: Session, predictor: Predictor[Any, Any]
) -> list[dict[str, Any]]:
    """What plain text is worth to the model, before training and after: what it has forgotten."""
    paths = prepared.recipe.evaluation.remember
    if not paths:
        return []
    models = {"after training": predictor.model}
    if prepared.pretrained is not None:
        models = {"before training": begin(prepared, session).eval(), **models}
    rows = []
    for name, model in models.items():
        texts = (document.text for document in read(paths, config=TextConfig()))
        assert prepared.tokenizer is not None
        found = perplexity(model, prepared.tokenizer, texts, seq_len=predictor.max_length)
        rows.append({"name": name, "files": [Path(p).name for p in paths], **found.to_dict()})
    return rows


def _samples(
    prepared: Prepared, predictor: Predictor[Any, Any], info: dict[str, Any]
) -> list[dict[str, str]]:
    """Answers to the first prompts of the held-out examples."""
    if not prepared.task.TALKS:
        return []
    settings, held = prepared.recipe.evaluation, prepared.examples.part(prepared.examples.scored)
    talk = Conversation(Generator(predictor.model, predictor.tokenizer), info)
    config = SamplingConfig(max_tokens=settings.sample_tokens, temperature=0.8, top_p=0.95, seed=0)
    samples = []
    for example in islice(held, settings.samples):
        messages = prepared.task.prompt(example)
        with contextlib.suppress(UsageError, TokenizerError):  # too long, or nothing is asked
            answer = talk.reply(messages, config).text
            samples.append({"prompt": messages[-1]["content"], "text": answer})
    return samples


def _save(
    prepared: Prepared, session: Session, predictor: Predictor[Any, Any], info: dict[str, Any]
) -> None:
    with atomic_folder(session.run / "model") as out:
        if predictor.kind in FITTED:
            predictor.model.save(out)
            write_json(out / "inkstone.json", {"format": 1, "inkstone": __version__, **info})
        else:
            save(out, prepared, predictor.model, info)


def _parameters(predictor: Predictor[Any, Any]) -> int | None:
    if predictor.kind in FITTED:
        return None
    return sum(p.numel() for p in predictor.model.parameters())
