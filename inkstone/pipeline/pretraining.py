"""After the last step of an objective: score held-out text, show examples, save, report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inkstone.checkpoint import atomic_folder, load_model, save_model
from inkstone.corpora.rows import Ids, Pieces
from inkstone.inference.fill import Filled, fill_mask, write
from inkstone.inference.middle import fill_marked
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.pipeline.finish import conclude, course, times
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import Prepared
from inkstone.recipe import Recipe
from inkstone.tasks import fill_in_the_middle
from inkstone.tasks._objective import Objective
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.training.loop import TrainingResult

FILL: dict[str, Callable[[Any, Tokenizer, Sequence[str]], list[Filled]]] = {
    "encoder": fill_mask, "seq2seq": write, "causal": fill_marked
}  # fmt: skip
COUNTED_TARGETS = 300_000  # of training batches, for the frequencies of the simplest guess
SAMPLE_TOKENS = 24  # of a held-out text, as an example


def finish(
    objective: Objective,
    recipe: Recipe,
    prepared: Prepared,
    run: Path,
    device: torch.device,
    trained: TrainingResult,
    info: dict[str, Any],
    observer: Observer,
    began: float,
) -> dict[str, Any]:
    """Turn the best checkpoint into `run/model`, and the run into scores and a report.

    Args:
        objective: What was learned.
        recipe: Resolved.
        prepared: The data.
        run: The run folder.
        device: Where to evaluate.
        trained: How training ended.
        info: What the model folder remembers; scores are added.
        observer: Told of the stages.
        began: `time.monotonic()` at the start of this session.

    Returns:
        The result, as written to result.json.
    """
    observer.stage("evaluate")
    started = time.monotonic()
    model, _, _ = load_model(trained.checkpoint, device=device)
    scores = _scores(objective, recipe, prepared, model)
    samples = _samples(objective, recipe, prepared, model)
    seconds = time.monotonic() - started
    ours = {k: v for k, v in (scores["table"] or [{}])[0].items() if k != "name"}
    observer.stage_done("evaluate", _line(ours), seconds)
    with atomic_folder(run / "model") as out:
        about = {**info, "scores": ours, "rule": scores["rule"]}
        save_model(out, model, prepared.tokenizer, info=about)
    result = {
        "run": str(run),
        "kind": "pretraining",
        "objective": objective.NAME,
        "unit": objective.UNIT,
        "model_kind": objective.KINDS[0],
        "family": recipe.model.family,
        **course(run, trained, model),
        "scores": scores,
        "samples": samples,
        "time": times(run, trained, seconds, began),
        "statistics": prepared.statistics.line(),
    }
    conclude(run, result, observer)
    return result


def _line(ours: dict[str, Any]) -> str:
    if not ours:
        return "nothing was held out, so there is nothing to score"
    return f"perplexity {ours['perplexity']:.2f}, accuracy {ours['accuracy']:.1%} of the targets"


def _scores(objective: Objective, recipe: Recipe, prepared: Prepared, model: Any) -> dict[str, Any]:
    """The model beside the guess that knows only how frequent each target is."""
    if prepared.valid is None:
        return {"table": [], "rule": "nothing was held out (text.valid_fraction = 0)"}
    most = recipe.evaluation.max_tokens
    report = objective.evaluate(model, objective.held_out(prepared.valid, most))
    table: list[dict[str, Any]] = [{"name": "this model", **report.to_dict()}]
    if recipe.evaluation.baselines:
        table.append(_frequencies(objective, prepared, most))
    return {"table": table, "rule": objective.rule, "targets": report.targets}


def _frequencies(objective: Objective, prepared: Prepared, most: int | None) -> dict[str, Any]:
    """A unigram model of the targets, add-one smoothed."""
    assert prepared.valid is not None
    counts = np.ones(objective.tokenizer.vocab_size)
    stream = objective.stream(prepared.train, tokens=1 << 14, seed=1)
    while counts.sum() < COUNTED_TARGETS and stream.epoch < 1:
        counts += np.bincount(_targets(next(stream)), minlength=len(counts))
    nats, seen = 0.0, Counter[int]()
    log_p = np.log(counts / counts.sum())
    for batch in objective.held_out(prepared.valid, most):
        targets = _targets(batch)
        nats -= float(log_p[targets].sum())
        seen.update(targets.tolist())
    mean = nats / max(1, seen.total())
    return {
        "name": "word frequencies", "nats_per_token": mean, "perplexity": float(np.exp(mean)),
        "accuracy": seen[int(counts.argmax())] / max(1, seen.total()),
    }  # fmt: skip


def _targets(batch: Any) -> Ids:
    targets: Ids = batch.targets[batch.targets != IGNORE_INDEX].numpy()
    return targets


def _samples(
    objective: Objective, recipe: Recipe, prepared: Prepared, model: Any
) -> list[dict[str, Any]]:
    """Beginnings of held-out documents with something hidden, and what the model puts there."""
    settings, tokenizer = recipe.evaluation, prepared.tokenizer
    fill = FILL[objective.KINDS[0]]
    if isinstance(objective, fill_in_the_middle.Objective):
        fill = partial(fill_marked, suffix_first=objective.config.spm_rate > 0)
    prompts = list(settings.prompts)
    if not prompts:
        length = max(4, min(SAMPLE_TOKENS, objective.seq_len - 8))
        pieces = Pieces(prepared.valid or prepared.train, length)
        count = min(settings.samples, len(pieces))
        rows = [pieces.row(number * len(pieces) // count) for number in range(count)]
        prompts = [objective.hide(row, number) for number, row in enumerate(rows)]
    texts = prompts[: max(settings.samples, len(settings.prompts))]
    found = fill(model, tokenizer, texts)
    return [
        {"prompt": prompt, "text": str(x), "words": x.to_dict()["masks"]}
        for prompt, x in zip(texts, found, strict=True)
    ]
