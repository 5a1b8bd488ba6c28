"""After training on examples: score the best model, save it with its task, write the report."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from inkstone import __version__
from inkstone.checkpoint import atomic_folder
from inkstone.evaluation.examples import baseline, evaluate
from inkstone.evaluation.scores import Score
from inkstone.files import write_json
from inkstone.inference.predict import FITTED, Predictor
from inkstone.pipeline.finish import conclude
from inkstone.pipeline.folder import PLAN, read_json
from inkstone.training.loop import TrainingResult

if TYPE_CHECKING:
    from inkstone.pipeline.examples import Prepared, Session


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
    from inkstone.pipeline.examples import provenance

    observer, examples, run = session.observer, prepared.examples, session.run
    observer.stage("evaluate")
    started = time.monotonic()
    part = examples.scored
    total = examples.counts[part]
    report = evaluate(
        predictor, examples.part(part),
        progress=lambda done: observer.progress(done, total, "examples"),
    )  # fmt: skip
    simplest = baseline(prepared.task, examples.part(part))
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
        "reason": trained.reason if trained else "finished",
        "steps": steps,
        "best_step": trained.best_step if trained else 0,
        "targets": trained.tokens if trained else examples.counts["train"],
        "parameters": _parameters(predictor),
        "counts": examples.counts,
        "part": part,
        "baseline": simplest,
        **report,
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


def _save(
    prepared: Prepared, session: Session, predictor: Predictor[Any, Any], info: dict[str, Any]
) -> None:
    from inkstone.pipeline.examples import save

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
