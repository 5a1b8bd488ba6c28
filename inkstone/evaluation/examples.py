"""A trained task on examples with known answers: scores, errors, the worst mistakes."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from inkstone.errors import DataError
from inkstone.evaluation import metrics, scores
from inkstone.inference.predict import Predictor
from inkstone.tasks._base import Mistake

WORST = 20  # mistakes that are shown
SHOWN_LABELS = 40  # a larger confusion matrix cannot be read
SHOWN_CHARACTERS = 600
BINS = 10  # of the calibration table


def evaluate(
    predictor: Predictor[Any, Any],
    examples: Iterable[Any],
    *,
    resamples: int = scores.RESAMPLES,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score predictions on labelled examples.

    Memory grows with the answers, not with the texts.

    Args:
        predictor: The task and its model.
        examples: With their answers.
        resamples: Of the confidence intervals.
        progress: Told how many examples are done.

    Returns:
        JSON-ready: examples, scores, and for labels a table by label, a confusion matrix (rows:
        right, columns: predicted) and calibration; the twenty worst mistakes.

    Raises:
        DataError: There are no examples.
    """
    task = predictor.task
    found: list[Any] = []
    given: list[Any] = []
    sure: list[float] = []
    worst: list[tuple[float, int, Mistake]] = []
    for example, prediction in predictor(examples):
        found.append(task.found(prediction))
        given.append(task.given(example))
        if isinstance(found[-1], str) and task.labels:
            sure.append(prediction.score)
        mistake = task.mistake(example, prediction)
        if mistake is not None:
            heapq.heappush(worst, (mistake.badness, len(found), mistake))
            if len(worst) > WORST:
                heapq.heappop(worst)
        if progress is not None and len(found) % 256 == 0:
            progress(len(found))
    if not given:
        raise DataError("there are no examples to score")
    result: dict[str, Any] = {
        "examples": len(given),
        "scores": [x.to_dict() for x in scores.score(task, found, given, resamples=resamples)],
        "labels": label_table(task, found, given),
        "mistakes": [_shortened(mistake) for *_, mistake in sorted(worst, reverse=True)],
    }
    if sure:
        result["confusion"] = confusion(task.labels, found, given)
        result["calibration"] = calibration(
            sure, [f == g for f, g in zip(found, given, strict=True)]
        )
    return result


def label_table(task: Any, found: Sequence[Any], given: Sequence[Any]) -> list[dict[str, Any]]:
    """Precision, recall and F1 of every label or span type, and how often each is right."""
    if not task.labels:
        return []
    if getattr(task, "spans", False):
        support = Counter(span.type for tags in given for span in metrics.spans(tags))
        by_type = metrics.span_f1_by_type(found, given)
        return [{"label": k, **v._asdict(), "examples": support[k]} for k, v in by_type.items()]
    right, f, g = Counter[str](), Counter[str](), Counter[str]()
    for ours, theirs in zip(found, given, strict=True):
        for one, other in zip(task.units(ours), task.units(theirs), strict=True):
            right.update(one & other)
            f.update(one)
            g.update(other)
    return [
        {
            "label": label,
            "precision": right[label] / f[label] if f[label] else 0.0,
            "recall": right[label] / g[label] if g[label] else 0.0,
            "f1": 2 * right[label] / (f[label] + g[label]) if f[label] + g[label] else 0.0,
            "examples": g[label],
        }
        for label in task.labels
        if f[label] or g[label]
    ]


def confusion(labels: Sequence[str], found: Sequence[str], given: Sequence[str]) -> Any:
    """Counts by right label (rows) and predicted label (columns); the frequent ones where many."""
    counts = Counter(zip(given, found, strict=True))
    known = [x for x, _ in Counter(given).most_common(SHOWN_LABELS)]
    shown = [label for label in labels if label in known]
    return {"labels": shown, "rows": [[counts[a, b] for b in shown] for a in shown]}


def calibration(sure: Sequence[float], right: Sequence[bool]) -> dict[str, Any]:
    """How often predictions of a certain probability are right (Guo et al. 2017, equation 3).

    Returns:
        `error`: expected calibration error, the mean distance of probability and accuracy; `bins`:
        (mean probability, accuracy, examples) by tenth of probability.
    """
    p, hit = np.array(sure), np.array(right, float)
    place = np.minimum((p * BINS).astype(int), BINS - 1)
    n = np.bincount(place, minlength=BINS)
    there = n > 0
    mean_p = np.bincount(place, p, BINS)[there] / n[there]
    accuracy = np.bincount(place, hit, BINS)[there] / n[there]
    error = float((n[there] * np.abs(mean_p - accuracy)).sum() / n.sum())
    bins = zip(mean_p.tolist(), accuracy.tolist(), n[there].tolist(), strict=True)
    return {"error": error, "bins": [list(x) for x in bins]}


def baseline(task: Any, examples: Iterable[Any]) -> dict[str, Any] | None:
    """What the task's simplest answers score: the most frequent label, or the source unchanged."""
    held = list(examples)
    simplest = task.simplest(held)
    if simplest is None:
        return None
    name, found = simplest
    rows = scores.score(task, found, [task.given(x) for x in held], resamples=0)
    return {"name": name, **{row.name: row.value for row in rows}}


def _shortened(mistake: Mistake) -> Mapping[str, Any]:
    row = asdict(mistake)
    return {
        k: v[:SHOWN_CHARACTERS] + " …" if isinstance(v, str) and len(v) > SHOWN_CHARACTERS else v
        for k, v in row.items()
    }
