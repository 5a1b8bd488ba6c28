"""A run without gradient steps: prepare the text, count its n-grams, score, save, report."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from inkstone import __version__
from inkstone.errors import ModelError
from inkstone.evaluation import baselines
from inkstone.evaluation.counted import perplexity
from inkstone.files import atomic_folder, write_atomic, write_json
from inkstone.models import ngram
from inkstone.pipeline import folder
from inkstone.pipeline.finish import held_out, held_out_texts, opening
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import Prepared
from inkstone.planning.plan import Choice
from inkstone.recipe import Recipe
from inkstone.report import write as write_report
from inkstone.text.store import DocumentStore

SAMPLE_CONTEXT = 64  # tokens of a prompt that are looked at


def train(
    prepared: Prepared, run: Path, header: str, info: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    """Resolve the settings, make the run folder, and `count`.

    Args:
        prepared: Tokens of the training and the held-out documents.
        run: A folder that holds no run yet.
        header: Comment above the resolved recipe.
        info: What the model folder remembers; scores are added.
        observer: Told of the stages.

    Returns:
        The run's result, as in its result.json.

    Raises:
        RunError: The folder holds a run already.
        ModelError: The settings do not fit the text.
    """
    recipe, choices = _choose(prepared)
    observer.choices(choices)
    notes = {c.key: c.reason for c in choices if c.chosen}
    folder.check_new(run, recipe.data.path)
    folder.create(
        run,
        header + recipe.to_toml(notes),
        data={
            "hashes": prepared.hashes,
            "statistics": prepared.statistics.to_dict(),
            "line": prepared.statistics.line(),
        },
        plan={"choices": [asdict(x) for x in choices]},
    )
    return count(recipe, prepared, run, info, observer)


def count(
    recipe: Recipe, prepared: Prepared, run: Path, info: dict[str, Any], observer: Observer
) -> dict[str, Any]:
    """Count, score and save an n-gram model; what an earlier attempt left is written again.

    Args:
        recipe: Resolved.
        prepared: As in `train`, like `run`, `info` and `observer`.

    Raises:
        ModelError: The settings do not fit the text.
    """
    began = time.monotonic()
    observer.stage("train")
    counting = time.monotonic()
    try:
        config = ngram.Config(**recipe.model.fields)
    except ValueError as error:
        raise ModelError(f"the n-gram model cannot be built: {error}") from error
    model = ngram.Model(config).fit(prepared.train.tokens(0, prepared.train.n_tokens))
    counted = sum(model.n_grams)
    counting_s = time.monotonic() - counting
    observer.stage_done("train", f"{counted:,} n-grams counted", counting_s)
    observer.stage("evaluate")
    scoring = time.monotonic()
    scores = _scores(recipe, prepared, model)
    samples = _samples(recipe, prepared, model)
    scoring_s = time.monotonic() - scoring
    ours = scores["table"][0] if scores["table"] else {}
    shown = {k: ours[k] for k in ("bits_per_byte", "perplexity") if k in ours}
    line = ", ".join(f"{k.replace('_', ' ')} {v:,.3f}" for k, v in shown.items())
    observer.stage_done("evaluate", line or "nothing was held out", scoring_s)
    with atomic_folder(run / "model") as out:
        model.write(out)
        prepared.tokenizer.save(out)
        about = {"version": __version__, "family": "ngram", **info, "scores": shown}
        write_json(out / "inkstone.json", about)
    result = {
        "run": str(run),
        "kind": ngram.KIND,
        "model": str(run / "model"),
        "report": str(run / "report.html"),
        "reason": "finished",
        "steps": 0,
        "best_step": 0,
        "tokens": prepared.train.n_tokens,
        "parameters": counted,
        "scores": scores,
        "samples": samples,
        "ending": "",
        "time": {
            "planned_training_s": counting_s,
            "training_s": counting_s,
            "planned_step_s": 0.0,
            "step_s": 0.0,
            "evaluation_s": scoring_s,
            "total_s": time.monotonic() - began,
        },
        "statistics": prepared.statistics.line(),
    }
    write_atomic(run / folder.RESULT, json.dumps(result, indent=1, ensure_ascii=False))
    write_report(run)
    observer.result(result)
    return result


def _choose(prepared: Prepared) -> tuple[Recipe, list[Choice]]:
    """What the recipe leaves open follows from the tokens."""
    given = prepared.recipe.model.fields
    tokenizer = prepared.tokenizer
    order = given.get("order") or baselines.default_order(prepared.train)
    values = {"vocab_size": tokenizer.vocab_size, "boundary_id": tokenizer.eos_id, "order": order}
    reasons = {
        "vocab_size": "of the tokenizer",
        "boundary_id": "its end-of-text token, so that no context crosses a document",
        "order": "7 where tokens are about as short as characters, else 5",
    }
    for key in ("vocab_size", "boundary_id"):
        if given.get(key) not in (None, values[key]):
            raise ModelError(
                f"model.{key} = {given[key]}, but the tokenizer has {values[key]}",
                fix=f"leave model.{key} out",
            )
    choices = [
        Choice(f"model.{key}", value, reasons[key], chosen=key not in given)
        for key, value in values.items()
    ]
    recipe = prepared.recipe.with_values({"model": {"family": "ngram", **values}})
    return recipe, [*prepared.plan.choices, *choices]


def _scores(recipe: Recipe, prepared: Prepared, model: ngram.Model) -> dict[str, Any]:
    """Over the held-out documents, beside a compressor."""
    if prepared.valid is None:
        return {"table": [], "rule": "nothing was held out (text.valid_fraction = 0)"}
    texts = held_out_texts(prepared, recipe.evaluation.max_tokens)
    ours = perplexity(model, prepared.tokenizer, texts)
    table: list[dict[str, Any]] = [
        {"name": "this model", "bits_per_byte": ours.bits_per_byte, "perplexity": ours.perplexity,
         "rule": ours.rule}
    ]  # fmt: skip
    if recipe.evaluation.baselines:
        training_text = iter(DocumentStore(prepared.documents / "train"))
        table += [asdict(row) for row in baselines.xz(training_text, texts)]
    return {"table": table, "rule": ours.rule, "tokens": ours.tokens, "bytes": ours.bytes}


def _samples(recipe: Recipe, prepared: Prepared, model: ngram.Model) -> list[dict[str, Any]]:
    """Continuations of the recipe's prompts, or of the first words of held-out documents."""
    settings, tokenizer = recipe.evaluation, prepared.tokenizer
    prompts = list(settings.prompts)
    if not prompts and prepared.valid is not None:
        prompts = [opening(text) for text in islice(held_out(prepared), settings.samples)]
    samples = []
    for seed, prompt in enumerate(prompts):
        ids = np.array(tokenizer.encode(prompt), np.int64)[-SAMPLE_CONTEXT:]
        drawn = model.sample(ids, settings.sample_tokens, stop_id=tokenizer.eos_id, seed=seed)
        reason = "stop" if len(drawn) < settings.sample_tokens else "length"
        text = tokenizer.decode(drawn)
        samples.append({"prompt": prompt, "text": text, "finish_reason": reason})
    return samples
