"""How a run on examples begins: with pretrained weights, and with what they say of the examples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from inkstone.checkpoint import load_model
from inkstone.corpora.examples import in_batches
from inkstone.inference.predict import TOKENS_AT_ONCE, Predictor, evaluating
from inkstone.models._base import adopt
from inkstone.pipeline.examples_session import Prepared, Session
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.timing import build_model
from inkstone.planning.plan import Choice, Plan
from inkstone.recipe import Recipe
from inkstone.tasks._codec import Codec
from inkstone.tokenizers.tokenizer import Tokenizer


def find_weights(source: Path) -> Path:
    """The model folder that a run or model folder is or holds."""
    held = source / "model"
    return held if (held / "config.json").is_file() else source


def grown(recipe: Recipe, model: Any, tokenizer: Tokenizer, plan: Plan) -> Recipe:
    """Room for the control tokens that a task has added to the vocabulary of the weights."""
    if tokenizer.vocab_size <= model.config.vocab_size:
        return recipe
    added = tokenizer.vocab_size - model.config.vocab_size
    reason = f"{added} more than the weights have: marks that the task needs"
    plan.choices.append(Choice("model.vocab_size", tokenizer.vocab_size, reason))
    return recipe.with_values(plan.values())


def begin(prepared: Prepared, session: Session) -> Any:
    """The model as training begins with it."""
    recipe = prepared.recipe
    torch.manual_seed(recipe.training.seed)
    precision = recipe.training.precision
    model = build_model(recipe.model.family, recipe.model.fields, precision, session.where)
    if prepared.pretrained is not None:
        pretrained, _, _ = load_model(find_weights(prepared.pretrained), device=session.where)
        adopt(model, pretrained)
    return model


def predictor_of(prepared: Prepared, model: Any) -> Predictor[Any, Any]:
    """The task with a model that reads rows of the length of training."""
    assert prepared.recipe.corpus.seq_len is not None
    length = min(prepared.recipe.corpus.seq_len, model.config.max_seq_len)
    return Predictor(prepared.task, model, prepared.kind, prepared.tokenizer, length)


def refer(prepared: Prepared, model: Any, observer: Observer) -> None:
    """Let the task keep what the pretrained weights say of every example."""
    observer.stage("reference")
    began = time.monotonic()
    task, table, tokenizer = prepared.task, prepared.table, prepared.tokenizer
    assert table is not None and tokenizer is not None
    codec = Codec(tokenizer, predictor_of(prepared, model).max_length)
    rows: list[Any] = [table[i] for i in range(len(table))]
    for part in ("valid", "test"):
        for own in task.encode(list(prepared.examples.part(part)), codec):
            rows += own
    done = 0
    with evaluating(model):
        for numbers in in_batches(task.lengths(rows), TOKENS_AT_ONCE):
            task.refer(model, [rows[i] for i in numbers], codec.pad_id)
            done += len(numbers)
            observer.progress(done, len(rows), f"{task.UNIT}s")
    observer.stage_done(
        "reference", f"{done:,} {task.UNIT}s read by the weights as they are",
        time.monotonic() - began,
    )  # fmt: skip
