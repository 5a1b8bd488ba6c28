"""After the last step: score beside baselines, sample, save the model, write the report."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from inkstone.checkpoint import atomic_folder, load_model, save_model
from inkstone.device import Machine
from inkstone.evaluation import baselines
from inkstone.evaluation.ending import stops_by_itself
from inkstone.evaluation.perplexity import perplexity
from inkstone.files import write_atomic
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.pipeline.folder import PLAN, RESULT, read_json
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import Prepared
from inkstone.recipe import Recipe
from inkstone.report import write as write_report
from inkstone.text.store import DocumentStore
from inkstone.training.loop import TrainingResult

PROMPT_WORDS = 8  # of a held-out document, as a sample's prompt
PROMPT_CHARACTERS = 60  # where a language writes no spaces


def finish(
    recipe: Recipe,
    prepared: Prepared,
    run: Path,
    machine: Machine,
    device: torch.device,
    trained: TrainingResult,
    info: dict[str, Any],
    observer: Observer,
    began: float,
) -> dict[str, Any]:
    """Turn the best checkpoint into `run/model`, and the run into scores and a report.

    Args:
        recipe: Resolved.
        prepared: The data.
        run: The run folder.
        machine: Measured facts, for the record.
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
    model, tokenizer, _ = load_model(trained.checkpoint, device=device)
    assert tokenizer is not None
    scores = _scores(recipe, prepared, model, tokenizer)
    generator = Generator(model, tokenizer)
    samples = _samples(recipe, prepared, generator)
    ends = stops_by_itself(generator, held_out(prepared))
    seconds = time.monotonic() - started
    ours = scores["table"][0] if scores["table"] else {}
    shown = {k: ours[k] for k in ("bits_per_byte", "perplexity") if ours.get(k) is not None}
    observer.stage_done("evaluate", _score_line(shown), seconds)
    with atomic_folder(run / "model") as out:
        save_model(out, model, tokenizer, info={**info, "scores": shown, "rule": scores["rule"]})
    result = {
        "run": str(run),
        **course(run, trained, model),
        "scores": scores,
        "samples": samples,
        "ending": str(ends),
        "stops_by_itself": ends.learned,
        "time": times(run, trained, seconds, began),
        "statistics": prepared.statistics.line(),
    }
    conclude(run, result, observer)
    return result


def course(run: Path, trained: TrainingResult, model: Any) -> dict[str, Any]:
    """What a result says of the training, and where its files are."""
    return {
        "model": str(run / "model"),
        "report": str(run / "report.html"),
        "reason": trained.reason,
        "steps": trained.step,
        "best_step": trained.best_step,
        "tokens": trained.tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def times(
    run: Path, trained: TrainingResult, evaluation_s: float, began: float
) -> dict[str, float]:
    """Seconds that were planned and that it took."""
    predicted = read_json(run / PLAN).get("predicted", {})
    return {
        "planned_training_s": predicted.get("training_s", 0.0),
        "training_s": trained.elapsed_s,
        "planned_step_s": predicted.get("step_s", 0.0),
        "step_s": trained.elapsed_s / max(1, trained.step),
        "evaluation_s": evaluation_s,
        "total_s": time.monotonic() - began,
    }


def conclude(run: Path, result: dict[str, Any], observer: Observer) -> None:
    """Write result.json and the report, and tell the observer."""
    write_atomic(run / RESULT, json.dumps(result, indent=1, ensure_ascii=False))
    observer.stage("report")
    at = time.monotonic()
    path = write_report(run)
    observer.stage_done("report", str(path), time.monotonic() - at)
    observer.result(result)


def held_out(prepared: Prepared) -> Iterator[str]:
    """Documents that were not learned from, or where there are none, those that were."""
    part = "valid" if prepared.valid is not None else "train"
    return iter(DocumentStore(prepared.documents / part))


def _score_line(shown: dict[str, float]) -> str:
    if not shown:
        return "nothing was held out, so there is nothing to score"
    return f"{shown['bits_per_byte']:.3f} bits per byte, perplexity {shown['perplexity']:.1f}"


def _scores(recipe: Recipe, prepared: Prepared, model: Any, tokenizer: Any) -> dict[str, Any]:
    """The model beside the baselines on the same held-out documents."""
    if prepared.valid is None:
        return {"table": [], "rule": "nothing was held out (text.valid_fraction = 0)"}
    texts = held_out_texts(prepared, recipe.evaluation.max_tokens)
    settings = recipe.evaluation
    ours = perplexity(
        model, tokenizer, texts, rule=settings.rule, stride=settings.stride,
        seq_len=recipe.corpus.seq_len,
    )  # fmt: skip
    table: list[dict[str, Any]] = [
        {"name": "this model", "bits_per_byte": ours.bits_per_byte, "perplexity": ours.perplexity,
         "rule": ours.rule}
    ]  # fmt: skip
    if settings.baselines:
        training_text = iter(DocumentStore(prepared.documents / "train"))
        for row in baselines.all(prepared.train, texts, tokenizer, train_texts=training_text):
            table.append(asdict(row))
    return {"table": table, "rule": ours.rule, "tokens": ours.tokens, "bytes": ours.bytes}


def held_out_texts(prepared: Prepared, max_tokens: int | None) -> list[str]:
    """Held-out documents, the first of them where all would take too long."""
    assert prepared.valid is not None
    per_token = prepared.valid.n_bytes / max(1, prepared.valid.n_tokens)
    room = max_tokens * per_token if max_tokens is not None else float("inf")
    texts: list[str] = []
    size = 0
    for text in held_out(prepared):
        if texts and size > room:
            break
        texts.append(text)
        size += len(text.encode())
    return texts


def _samples(recipe: Recipe, prepared: Prepared, generator: Generator) -> list[dict[str, Any]]:
    """Continuations of the recipe's prompts, or of the first words of held-out documents."""
    settings = recipe.evaluation
    prompts = list(settings.prompts)
    if not prompts:
        prompts = [opening(t) for t in islice(held_out(prepared), settings.samples)]
    room = generator.max_seq_len // 2
    prompts = [p for p in prompts if len(generator.encode(p)) <= room]
    if not prompts:
        return []
    config = SamplingConfig(max_tokens=settings.sample_tokens, temperature=0.8, top_p=0.95, seed=0)
    made = generator.generate(prompts, config)
    return [
        {"prompt": prompt, "text": x.text, "finish_reason": x.finish_reason}
        for prompt, x in zip(prompts, made, strict=True)
    ]


def opening(text: str) -> str:
    """The first words of a text, as a prompt."""
    words = text.split()[:PROMPT_WORDS]
    return " ".join(words)[:PROMPT_CHARACTERS]
