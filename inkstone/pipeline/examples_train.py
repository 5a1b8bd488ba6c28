"""Plan, and then train or fit a model on prepared examples."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from inkstone import __version__, registry
from inkstone import device as devices
from inkstone.checkpoint import load_model
from inkstone.corpora.examples import ExampleStream
from inkstone.device import Machine
from inkstone.evaluation import scores
from inkstone.inference.predict import Predictor, connect, evaluating
from inkstone.pipeline import adapting, embeddings
from inkstone.pipeline.examples_begin import begin, find_weights, predictor_of, refer
from inkstone.pipeline.examples_session import Prepared, Session, provenance, save
from inkstone.pipeline.lessons import Lessons
from inkstone.pipeline.observer import Observer, Relay
from inkstone.pipeline.timing import build_model, time_steps
from inkstone.planning.constants import TIMING_SECONDS
from inkstone.planning.examples import ExampleFacts, plan_examples
from inkstone.planning.plan import Plan
from inkstone.tasks._base import Row, Task
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import Codec
from inkstone.training.loop import TrainingResult

BEST = "best_by"  # the score that picks the best checkpoint: the task's own, less a little loss
TIE = 1e-6
ERROR = "standard_error"  # of that score, at most; a fine-tuned model settles while its rate falls:
# of checkpoints that held-out examples cannot tell apart the last (Breiman et al. 1984, the
# one-standard-error rule of section 3.4.3)
FOLDS = 4  # of the examples, where a fitted model's threshold is chosen


def plan(
    prepared: Prepared,
    machine: Machine,
    where: torch.device,
    *,
    share: float = 1.0,
    seconds: float = TIMING_SECONDS,
) -> Plan:
    """What to train, and for how long.

    Args:
        prepared: The examples, or a sample of those to train on.
        machine: Measured rates.
        where: Device to train on.
        share: Of the examples that the sample is.
        seconds: Spent on timing a candidate.
    """
    recipe, task, table = prepared.recipe, prepared.task, prepared.table
    assert table is not None
    start = None
    if prepared.pretrained is not None:
        start = load_model(find_weights(prepared.pretrained))[0].config.model_dump()
    held_out = prepared.examples.counts["valid"]
    tokens = sum(int(table.lengths(c).sum()) for c in task.LENGTHS)
    facts = ExampleFacts(
        task.NAME, prepared.kind, round(len(table) / share), round(tokens / share),
        held_out * tokens // max(1, len(table)), _fixed(prepared), start,
    )  # fmt: skip
    dtype = devices.training_dtype(where, recipe.training.precision)

    def time_step(fields: Mapping[str, Any], step: Mapping[str, Any]) -> float:
        model = build_model(recipe.model.family, fields, step["precision"], where)
        return time_steps(model, _stream(prepared, step), task.loss, seconds)

    def batches_per_epoch(sizes: Mapping[str, Any]) -> int:
        return max(1, round(_stream(prepared, sizes).batches_per_epoch / share))

    return plan_examples(
        facts,
        machine,
        recipe.to_dict(only_given=True),
        precision="bf16" if dtype == torch.bfloat16 else "fp32",
        batches_per_epoch=batches_per_epoch,
        time_step=time_step,
    )


def _fixed(prepared: Prepared) -> dict[str, Any]:
    """What the model's configuration must hold for these examples."""
    task, tokenizer = prepared.task, prepared.tokenizer
    assert tokenizer is not None
    fixed: dict[str, Any] = {} if prepared.pretrained else {"vocab_size": tokenizer.vocab_size}
    head = task.HEADS[prepared.kind]
    if head:
        fixed["head"] = head
    if head and task.labels:
        fixed["n_labels"] = len(task.labels)
    if task.alphabet:
        fixed["char_vocab_size"] = len(task.alphabet) + 2
    if task.token_types:
        fixed["n_token_types"] = task.token_types
    family = registry.load("models", prepared.recipe.model.family)
    fields = family.Config.model_fields
    if not prepared.pretrained:
        fixed |= Codec(tokenizer, 8).model_fields(family.Config)
        ids = {"start_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id, "eos_id": tokenizer.eos_id}
        fixed |= {k: v for k, v in ids.items() if k in fields and v is not None}
    return fixed


def _stream(prepared: Prepared, sizes: Mapping[str, Any]) -> ExampleStream:
    table, task = prepared.table, prepared.task
    assert table is not None and prepared.tokenizer is not None
    pad_id = Codec(prepared.tokenizer, 8).pad_id

    def collate(numbers: Sequence[int]) -> TokenBatch:
        return task.collate([table[number] for number in numbers], pad_id)

    return ExampleStream(
        torch.tensor([table.lengths(c).tolist() for c in task.LENGTHS]).T.numpy(),
        collate,
        batch_examples=sizes.get("examples_per_step"),
        batch_tokens=None if sizes.get("examples_per_step") else sizes["tokens_per_step"],
        seed=prepared.recipe.corpus.seed,
    )


def fit(prepared: Prepared, observer: Observer) -> Predictor[Any, Any]:
    """Fit a model of a family that is fitted at once."""
    task, examples = prepared.task, list(prepared.examples.part("train"))
    if task.unsettled:
        _settle(task, _unseen(prepared, examples), observer)
    return Predictor(task, _fitted(prepared, examples), prepared.kind)


def _fitted(prepared: Prepared, examples: Sequence[Any]) -> Any:
    module = registry.load("models", prepared.recipe.model.family)
    model = module.Model(module.Config(**prepared.recipe.model.fields))
    prepared.task.fit(model, examples)
    return model


def _unseen(prepared: Prepared, examples: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each example, and what a model that was fitted to other parts of them says of it."""
    for number in range(FOLDS):
        part = examples[number::FOLDS]
        others = [e for i, e in enumerate(examples) if i % FOLDS != number]
        yield from zip(part, prepared.task.apply(_fitted(prepared, others), part), strict=True)


def _settle(task: Task[Any, Any], unseen: Iterable[tuple[Any, Any]], observer: Observer) -> None:
    """Choose what needs predictions of examples that were not trained on."""
    given, found = zip(*unseen, strict=True)
    line = task.settle(given, found)
    if line is not None:
        observer.note(line)


def learn(prepared: Prepared, session: Session) -> tuple[TrainingResult, Predictor[Any, Any]]:
    """Train step by step, and choose what needs a trained model."""
    trained, predictor = _train(prepared, session)
    session.observer.training_ended()
    if prepared.task.unsettled and prepared.examples.counts["valid"]:
        _settle(prepared.task, predictor(prepared.examples.part("valid")), session.observer)
    return trained, predictor


def _train(prepared: Prepared, session: Session) -> tuple[TrainingResult, Predictor[Any, Any]]:
    recipe, task, tokenizer = prepared.recipe, prepared.task, prepared.tokenizer
    assert tokenizer is not None and recipe.corpus.seq_len is not None
    training = recipe.training
    model = begin(prepared, session)
    if task.REFERS:
        refer(prepared, model, session.observer)
        session.observer.stage("train")
    adapting.attach(model, recipe)
    embeddings.begin(model, recipe, tokenizer, session.run, session.observer)
    connect(task, tokenizer)
    length = min(recipe.corpus.seq_len, model.config.max_seq_len)
    info = provenance(prepared, length)

    def write(out: Path, network: Any) -> None:
        save(out, prepared, network, info)

    trainer = lessons(prepared, model, length).trainer(
        model,
        training,
        session.run,
        save_model=adapting.saver(model, recipe, write, info),
        load_weights=adapting.loader(model, recipe),
        hooks=[Relay(session.observer)],
    )
    result = trainer.run()
    best, _, _ = load_model(result.checkpoint, device=session.where)
    best.compute_dtype = model.compute_dtype
    return result, predictor_of(prepared, best)


def lessons(prepared: Prepared, model: Any, length: int) -> Lessons:
    """What the training loop gets from a task on examples.

    Args:
        prepared: With its recipe resolved.
        model: To be trained.
        length: Tokens of a row at most.
    """
    recipe, task = prepared.recipe, prepared.task
    higher = task.watched
    return Lessons(
        _stream(prepared, recipe.training.model_dump()),
        task.loss,
        _looker(prepared, model, length),
        best_by=BEST if higher else "nats_per_token",
        higher_is_better=higher,
        margin_by=ERROR if higher and recipe.model.pretrained is not None else None,
        fingerprint={**prepared.hashes, "inkstone": __version__, **adapting.fingerprint(recipe)},
    )


def _looker(prepared: Prepared, model: Any, length: int) -> Callable[[], dict[str, float]] | None:
    """Scores of held-out examples during training; None where nothing is held out."""
    if not prepared.examples.counts["valid"]:
        return None
    task, tokenizer = prepared.task, prepared.tokenizer
    assert tokenizer is not None
    codec = Codec(tokenizer, length)
    room = prepared.recipe.evaluation.live_tokens or 1 << 62
    held: list[tuple[Any, list[Row]]] = []
    for example in prepared.examples.part("valid"):
        rows = task.encode([example], codec)[0]
        held.append((example, rows))
        room -= int(task.lengths(rows).sum())
        if room <= 0:
            break
    rows = [row for _, own in held for row in own]
    batches = [rows[i : i + 32] for i in range(0, len(rows), 32)]
    look = getattr(task, "held_out_loss", task.loss)

    def score() -> dict[str, float]:
        nats, targets = 0.0, 0
        outputs: list[Any] = []
        with evaluating(model):
            for part in batches:
                batch = task.collate(part, codec.pad_id).to(model.device)
                total, count = look(model, batch)
                nats, targets = nats + float(total), targets + count
                if task.watched:
                    outputs += task.outputs(model, batch, part)
        result = {"nats_per_token": nats / max(1, targets)}
        if task.watched:
            left = iter(outputs)
            found = [task.predict(e, [next(left) for _ in own]) for e, own in held]
            given = [task.given(example) for example, _ in held]
            result |= scores.values(task, [task.found(x) for x in found], given)
            # of equally good checkpoints the one with the lower loss
            value = result[task.metrics[0]]
            result[BEST] = value - TIE * min(100.0, result["nats_per_token"])
            # of an example's score, which lies between 0 and 1
            result[ERROR] = math.sqrt(max(0.0, value * (1 - value)) / len(held))
        return result

    return score


def summary(result: TrainingResult, task: Task[Any, Any]) -> str:
    name = task.metrics[0] if task.watched else "nats_per_token"
    best = (
        f"; best held-out {name.replace('_', ' ')} {result.best_score:.4f} "
        f"at step {result.best_step:,}"
        if result.best_score is not None
        else ""
    )
    ended = ", stopped early: it no longer got better" if result.reason != "finished" else ""
    return f"{result.step:,} steps{best}{ended}"
