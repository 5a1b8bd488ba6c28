"""A run on labelled examples: read → tokenizer → encode → plan → train → evaluate → report.

Routed here by the recipe's task. A family of `KIND` "linear" or "markov" is fitted at once; the
others are trained by the same loop as language models.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from inkstone import __version__, registry
from inkstone import device as devices
from inkstone.checkpoint import load_model, save_model
from inkstone.corpora.examples import ExampleStream, ExampleTable
from inkstone.device import Machine
from inkstone.errors import RunError, UsageError
from inkstone.evaluation import scores
from inkstone.files import sha256
from inkstone.inference.embed import Pooling
from inkstone.inference.predict import FITTED, Predictor, connect, evaluating
from inkstone.pipeline import adapting, embeddings, folder
from inkstone.pipeline import examples_data as data
from inkstone.pipeline.examples_begin import begin, find_weights, grown, predictor_of, refer
from inkstone.pipeline.examples_finish import check_remember, finish
from inkstone.pipeline.observer import Observer, Relay
from inkstone.pipeline.stages import StageCache
from inkstone.pipeline.timing import build_model, time_steps
from inkstone.planning.auto import plan_vocabulary
from inkstone.planning.constants import DEFAULT_MINUTES, TIMING_SECONDS
from inkstone.planning.examples import ExampleFacts, plan_examples, plan_length
from inkstone.planning.plan import Choice, CorpusFacts, Plan
from inkstone.recipe import Recipe
from inkstone.tasks._base import Row, Task
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import Codec
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.training.loop import Trainer, TrainingResult

BEST = "best_by"  # the score that picks the best checkpoint: the task's own, less a little loss
TIE = 1e-6
LISTS = (("data", "path"), ("data", "valid"), ("data", "test"), ("data", "replay"),
         ("evaluation", "remember"))  # fmt: skip
FOLDS = 4  # of the examples, where a fitted model's threshold is chosen
TOKENIZER_KIND = {"encoder": "wordpiece", "seq2seq": "bpe"}


@dataclass(frozen=True)
class Session:
    """What every step of one run looks at.

    Attributes:
        run: The run folder.
        cache: Of the stages.
        observer: Told what happens.
        where: Device to train on.
        began: `time.monotonic()` at the start.
    """

    run: Path
    cache: StageCache
    observer: Observer
    where: torch.device
    began: float


@dataclass(frozen=True)
class Prepared:
    """Examples, ready to train on.

    Attributes:
        recipe: With tokenizer and length resolved.
        plan: The choices made so far.
        examples: Their text.
        kind: Of the model's family.
        tokenizer: None where the model reads text.
        table: Encoded training examples; None where the model reads text.
        pretrained: Folder of the weights to begin with.
    """

    recipe: Recipe
    plan: Plan
    examples: data.Examples
    kind: str
    tokenizer: Tokenizer | None = None
    table: ExampleTable | None = None
    pretrained: Path | None = None

    @property
    def task(self) -> Task[Any, Any]:
        return self.examples.task

    @property
    def hashes(self) -> dict[str, str]:
        """What identifies the data, for provenance and for resuming."""
        parts = {name: self.examples.folder / f"{name}.jsonl" for name in data.PARTS}
        hashes = {name: sha256(path) for name, path in parts.items()}
        if self.tokenizer is not None and self.table is not None:
            hashes |= {"tokenizer": self.tokenizer.fingerprint(), "ids": self.table.fingerprint}
        return hashes | embeddings.hashes(self.recipe)


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


def prepare(recipe: Recipe, session: Session, examples: data.Examples | None = None) -> Prepared:
    """Everything ahead of planning, or what earlier runs left of it.

    Args:
        recipe: With its data.
        session: Where, and for whom.
        examples: Those of the data, or a sample of them; None reads them.
    """
    plan = Plan()
    pretrained = Path(recipe.model.pretrained) if recipe.model.pretrained else None
    recipe = embeddings.plan_size(recipe, plan)
    recipe, model, tokenizer = _pretrained(recipe, pretrained, plan)
    family = registry.load("models", recipe.model.family)
    examples = examples or data.gather(recipe, session.cache)
    if examples.task.REFERS and pretrained is None:
        raise UsageError(
            f"{examples.task.NAME} needs a model that answers already",
            fix="name it: model.pretrained=RUN, best of a run with task.name=instructions",
        )
    adapting.check(recipe, examples.task)
    if recipe.evaluation.remember:
        check_remember(recipe, examples.task)
    if family.KIND not in examples.task.HEADS:
        fitting = ", ".join(_families(examples.task))
        raise UsageError(
            f"model.family {recipe.model.family!r} does not fit the task {examples.task.NAME}",
            fix=f"families that fit: {fitting}",
        )
    if "char_vocab_size" not in getattr(family.Config, "model_fields", {}):
        examples.task.alphabet = ""
    if family.KIND in FITTED:
        return Prepared(recipe, plan, examples, family.KIND)
    if tokenizer is None:
        recipe = choose_tokenizer(recipe, examples, family.KIND, plan, session.where.type)
        tokenizer = data.tokenizer_for(examples, recipe.tokenizer, session.cache)
    elif model is not None:
        tokenizer = examples.task.adapt(tokenizer)
        adapting.check_vocabulary(recipe, model.config.vocab_size, tokenizer.vocab_size)
        recipe = grown(recipe, model, tokenizer, plan)
    limit = None if model is None else int(model.config.max_seq_len)
    if recipe.corpus.seq_len is None:
        plan.choices.append(plan_length(data.sample_lengths(examples, tokenizer), limit))
        recipe = recipe.with_values(plan.values())
    assert recipe.corpus.seq_len
    length = min(recipe.corpus.seq_len, limit or recipe.corpus.seq_len)
    table = ExampleTable(data.encode(examples, tokenizer, length, session.cache, recipe.data))
    return Prepared(recipe, plan, examples, family.KIND, tokenizer, table, pretrained)


def _families(task: Task[Any, Any]) -> list[str]:
    names = registry.names("models")
    return [n for n in names if getattr(registry.load("models", n), "KIND", "") in task.HEADS]


def _pretrained(
    recipe: Recipe, source: Path | None, plan: Plan
) -> tuple[Recipe, Any, Tokenizer | None]:
    """The family and the tokenizer of the weights to begin with."""
    if source is None:
        return recipe, None, None
    model, tokenizer, _ = load_model(find_weights(source))
    if tokenizer is None:
        raise UsageError(f"{source} has no tokenizer, so it cannot read the examples")
    family = type(model).__module__.rsplit(".", 1)[-1]
    plan.choices.append(Choice("model.family", family, "of the pretrained weights"))
    return recipe.with_values({"model": {"family": family}}), model, tokenizer


def choose_tokenizer(
    recipe: Recipe, examples: data.Examples, kind: str, plan: Plan, device: str
) -> Recipe:
    """The tokenizer's kind and size, by the task and the examples; told to the plan."""
    given = recipe.to_dict(only_given=True).get("tokenizer", {})
    if "kind" not in given:
        wanted = TOKENIZER_KIND.get(kind, "bpe")
        reason = "with the frame [CLS] … [SEP] that encoders read"
        plan.choices.append(
            Choice("tokenizer.kind", wanted, reason if wanted == "wordpiece" else "any text")
        )
        tasks = ("classification", "similarity")
        folded = wanted == "wordpiece" and examples.task.NAME in tasks
        if folded and "lowercase" not in given:
            reason = "few examples: a word is the same word in capitals"
            plan.choices.append(Choice("tokenizer.lowercase", True, reason))
        recipe = recipe.with_values(plan.values())
    texts = [t for e in islice(examples.part("train"), 2000) for t in examples.task.texts(e)]
    letters = len(set("".join(texts)))
    size = (examples.folder / "train.jsonl").stat().st_size
    facts = CorpusFacts(size, examples.counts["train"], characters=letters if letters < 8000 else 0)
    minutes = recipe.training.minutes or DEFAULT_MINUTES
    config = recipe.tokenizer
    plan.choices += plan_vocabulary(facts, config.kind, config.vocab_size, minutes, device).choices
    return recipe.with_values(plan.values())


# --- training ------------------------------------------------------------------------------------


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


def _learn(prepared: Prepared, session: Session) -> dict[str, Any]:
    """Train or fit, then score and save."""
    task, observer = prepared.task, session.observer
    observer.unit = f"{task.UNIT}s"
    observer.stage("train")
    started = time.monotonic()
    if prepared.kind in FITTED:
        examples = list(prepared.examples.part("train"))
        if task.unsettled:
            _settle(task, _unseen(prepared, examples), observer)
        model = _fit(prepared, examples)
        seconds = time.monotonic() - started
        predictor = Predictor(task, model, prepared.kind)
        observer.stage_done("train", f"fitted to {prepared.examples.counts['train']:,}", seconds)
        trained = None
    else:
        trained, predictor = _train(prepared, session)
        observer.training_ended()
        if task.unsettled and prepared.examples.counts["valid"]:
            _settle(task, predictor(prepared.examples.part("valid")), observer)
        observer.stage_done("train", _summary(trained, task), time.monotonic() - started)
    return finish(prepared, session, predictor, trained, time.monotonic() - started)


def _fit(prepared: Prepared, examples: Sequence[Any]) -> Any:
    """A model of a family that is fitted at once."""
    module = registry.load("models", prepared.recipe.model.family)
    model = module.Model(module.Config(**prepared.recipe.model.fields))
    prepared.task.fit(model, examples)
    return model


def _unseen(prepared: Prepared, examples: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Each example, and what a model that was fitted to other parts of them says of it."""
    for number in range(FOLDS):
        part = examples[number::FOLDS]
        others = [e for i, e in enumerate(examples) if i % FOLDS != number]
        yield from zip(part, prepared.task.apply(_fit(prepared, others), part), strict=True)


def _settle(task: Task[Any, Any], unseen: Iterable[tuple[Any, Any]], observer: Observer) -> None:
    """Choose what needs predictions of examples that were not trained on."""
    given, found = zip(*unseen, strict=True)
    line = task.settle(given, found)
    if line is not None:
        observer.note(line)


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
    higher = task.watched

    def write(out: Path, network: Any) -> None:
        save(out, prepared, network, info)

    trainer = Trainer(
        model,
        _stream(prepared, training.model_dump()),
        training,
        session.run,
        save_model=adapting.saver(model, recipe, write, info),
        load_weights=adapting.loader(model, recipe),
        evaluate=_looker(prepared, model, length),
        best_by=BEST if higher else "nats_per_token",
        higher_is_better=higher,
        hooks=[Relay(session.observer)],
        loss=task.loss,
        fingerprint={**prepared.hashes, "inkstone": __version__, **adapting.fingerprint(recipe)},
    )
    result = trainer.run()
    best, _, _ = load_model(result.checkpoint, device=session.where)
    best.compute_dtype = model.compute_dtype
    return result, predictor_of(prepared, best)


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
            result[BEST] = result[task.metrics[0]] - TIE * min(100.0, result["nats_per_token"])
        return result

    return score


def save(out: Path, prepared: Prepared, model: Any, info: dict[str, Any]) -> None:
    """Write a model folder; where its task makes vectors, with how."""
    save_model(out, model, prepared.tokenizer, info=info)
    if prepared.task.pooling is not None:
        pooling = Pooling(prepared.task.pooling, normalize=True, max_tokens=info["max_length"])
        pooling.write(out, model.config.d_model)


def provenance(prepared: Prepared, length: int) -> dict[str, Any]:
    """What a model folder remembers; of the data's place only the last name."""
    remembered = prepared.recipe.to_dict()
    for section, key in LISTS:
        paths = remembered[section].get(key) or []
        remembered[section][key] = [Path(p).name for p in paths]
    if prepared.pretrained is not None:
        remembered["model"]["pretrained"] = prepared.pretrained.name
    if prepared.recipe.model.embeddings is not None:
        remembered["model"]["embeddings"] = Path(prepared.recipe.model.embeddings).name
    return {
        **prepared.task.info(),
        "family": prepared.recipe.model.family,
        "max_length": length,
        "recipe": remembered,
        "data": {"hashes": prepared.hashes, "examples": prepared.examples.counts},
    }


def _summary(result: TrainingResult, task: Task[Any, Any]) -> str:
    name = task.metrics[0] if task.watched else "nats_per_token"
    best = (
        f"; best held-out {name.replace('_', ' ')} {result.best_score:.4f} "
        f"at step {result.best_step:,}"
        if result.best_score is not None
        else ""
    )
    ended = ", stopped early: it no longer got better" if result.reason != "finished" else ""
    return f"{result.step:,} steps{best}{ended}"
