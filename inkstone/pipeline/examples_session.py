"""What every step of a run on examples looks at: where it runs, and what has been prepared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inkstone.checkpoint import save_model
from inkstone.corpora.examples import ExampleTable
from inkstone.files import sha256
from inkstone.inference.embed import Pooling
from inkstone.pipeline import embeddings
from inkstone.pipeline import examples_data as data
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.stages import StageCache
from inkstone.planning.plan import Plan
from inkstone.recipe import Recipe
from inkstone.tasks._base import Task
from inkstone.tokenizers.tokenizer import Tokenizer

LISTS = (("data", "path"), ("data", "valid"), ("data", "test"), ("data", "replay"),
         ("evaluation", "remember"))  # fmt: skip


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


def save(out: Path, prepared: Prepared, model: Any, info: dict[str, Any]) -> None:
    """Write a model folder; where its task makes vectors, with how."""
    save_model(out, model, prepared.tokenizer, info=info)
    if prepared.task.pooling is not None:
        pooling = Pooling(prepared.task.pooling, normalize=True, max_tokens=info["max_length"])
        pooling.write(out, model.config.d_model)
