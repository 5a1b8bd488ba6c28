"""Predictions of a task's model for any number of examples, in order and in constant memory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import ValidationError

from inkstone import registry
from inkstone.checkpoint import load_model
from inkstone.corpora.examples import in_batches
from inkstone.errors import CheckpointError, UsageError
from inkstone.files import read_json
from inkstone.inference.beam import BeamConfig, translate
from inkstone.tasks._base import Row, Task
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import Codec
from inkstone.tokenizers.tokenizer import Tokenizer

EXAMPLES_AT_ONCE = 1024  # held in memory, sorted by length
TOKENS_AT_ONCE = 4096  # of one forward pass
LONGER, EXTRA = 2, 16  # a text that is written has at most LONGER · source + EXTRA tokens
PLAIN = "language_modeling"
FITTED = frozenset({"linear", "markov"})  # kinds of model that read text, not ids
E = TypeVar("E")
P = TypeVar("P")


@dataclass(frozen=True)
class Predictor(Generic[E, P]):
    """A task and a model that has learned it.

    Attributes:
        task: With its labels.
        model: Of a kind that the task knows.
        kind: That kind.
        tokenizer: The model's own; None where it reads text.
        max_length: Tokens a row at most.
    """

    task: Task[E, P]
    model: Any
    kind: str
    tokenizer: Tokenizer | None = None
    max_length: int = 0

    def __call__(self, examples: Iterable[E]) -> Iterator[tuple[E, P]]:
        """Each example with its prediction, in the given order."""
        if self.kind not in FITTED:
            assert self.tokenizer is not None
            codec = Codec(self.tokenizer, self.max_length)
        iterator = iter(examples)
        while some := list(itertools.islice(iterator, EXAMPLES_AT_ONCE)):
            if self.kind in FITTED:
                yield from zip(some, self.task.apply(self.model, some), strict=True)
                continue
            parts = [self.task.parts(example, codec) for example in some]
            encoded = self.task.encode([part for own in parts for part in own], codec)
            rows = [row for rows in encoded for row in rows]
            outputs, left = iter(self._outputs(rows, codec.pad_id)), iter(encoded)
            for example, own in zip(some, parts, strict=True):
                found = [self.task.predict(x, [next(outputs) for _ in next(left)]) for x in own]
                yield example, self.task.join(example, own, found)

    def _outputs(self, rows: list[Row], pad_id: int) -> list[Any]:
        """What the model says about each row; rows of like length go together."""
        out: list[Any] = [None] * len(rows)
        with evaluating(self.model):
            for numbers in in_batches(self.task.lengths(rows), TOKENS_AT_ONCE):
                part = [rows[i] for i in numbers]
                batch = self.task.collate(part, pad_id).to(self.model.device)
                for number, output in zip(
                    numbers, self.task.outputs(self.model, batch, part), strict=True
                ):
                    out[number] = output
        return out


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Within the block a model is in evaluation mode and keeps no graph."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # tensors of inference mode may not be seen by training again
            yield
    finally:
        model.train(was_training)


def connect(task: Task[E, P], tokenizer: Tokenizer | None) -> None:
    """Give a task the tokenizer, and one that writes text the search that it writes with."""
    if tokenizer is not None:
        task.connect(tokenizer)
    if tokenizer is not None and "seq2seq" in task.HEADS:
        eos_id, config = tokenizer.eos_id, task.config

        def decode(model: Any, batch: TokenBatch) -> list[tuple[list[int], float]]:
            assert batch.source_ids is not None
            longest = LONGER * batch.source_ids.shape[1] + EXTRA
            search = BeamConfig(
                n_beams=config.n_beams,
                length_penalty=config.length_penalty,
                no_repeat_ngram=config.no_repeat_ngram,
                max_tokens=min(longest, model.config.max_seq_len),
            )
            found = translate(model, batch.source_ids, batch.source_mask, search, {eos_id})
            return [([i for i in best.ids if i != eos_id], best.score) for best, *_ in found]

        task.decode, task.tokenizer = decode, tokenizer  # type: ignore[attr-defined]


def open_predictor(folder: Path, device: torch.device | str = "cpu") -> Predictor[Any, Any]:
    """Open the model folder of a task run.

    Args:
        folder: Holds config.json, the weights and inkstone.json.
        device: Where the parameters go.

    Raises:
        UsageError: It was trained on no task with labelled examples.
        CheckpointError: Something in it is missing or damaged.
    """
    about = folder / "inkstone.json"
    info = read_json(about) if about.is_file() else {}
    task = task_from(info, str(about))
    family = info.get("family")
    kind = getattr(registry.load("models", family), "KIND", "") if isinstance(family, str) else ""
    if kind in FITTED:
        return Predictor(task, registry.load("models", str(family)).Model.load(folder), kind)
    model, tokenizer, _ = load_model(folder, device=device)
    if tokenizer is None:
        raise CheckpointError(f"{folder} has no tokenizer, so text cannot be read")
    n_labels = getattr(model.config, "n_labels", None)
    if task.labels and n_labels != len(task.labels):
        raise CheckpointError(f"{about}: {len(task.labels)} labels for a head of {n_labels}")
    length = info.get("max_length")
    most = model.config.max_seq_len
    connect(task, tokenizer)
    return Predictor(
        task, model, kind, tokenizer, min(most, length) if isinstance(length, int) else most
    )


def is_on_examples(info: dict[str, Any]) -> bool:
    """Whether a model folder remembers a task, rather than an objective on plain text.

    Raises:
        UnknownNameError: The task is not known here.
    """
    name = info.get("task")
    if name is None:
        return False
    return not hasattr(registry.load("tasks", str(name)), "Objective") and name != PLAIN


def task_from(info: dict[str, Any], where: str) -> Task[Any, Any]:
    """The task that a model folder remembers, as if somebody hostile had written it.

    Raises:
        UsageError: It is not a task on labelled examples.
        CheckpointError: Its settings or labels are malformed.
    """
    name = info.get("task")
    module = registry.load("tasks", name) if isinstance(name, str) else None
    if module is None or not hasattr(module, "Task"):
        raise UsageError(
            f"this model was trained for {str(name or 'no known task').replace('_', ' ')}",
            fix="give the run of a task such as classification, tagging or translation",
        )
    labels, characters = info.get("labels", []), info.get("characters", "")
    sound = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not sound or len(set(labels)) != len(labels) or not isinstance(characters, str):
        raise CheckpointError(f"{where}: labels are not a list of different names")
    try:
        config = module.Config.model_validate(info.get("task_settings", {}))
    except ValidationError as error:
        raise CheckpointError(f"{where}: task_settings: {error.errors()[0]['msg']}") from error
    task: Task[Any, Any] = module.Task(config, labels, characters=characters)
    return task
