"""Word vectors as the beginning of a model's token embedding: `model.embeddings`.

For every family that has one, and whatever it is trained to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inkstone import registry
from inkstone.checkpoint.vectors import (
    check_size,
    find_files,
    initialize_embedding,
    open_vectors,
)
from inkstone.errors import UsageError
from inkstone.files import sha256
from inkstone.pipeline.observer import Observer
from inkstone.planning.plan import Choice, Plan
from inkstone.recipe import Recipe
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.training.state import checkpoints

KINDS = ("causal", "encoder", "seq2seq")


def plan_size(recipe: Recipe, plan: Plan) -> Recipe:
    """The recipe as wide as its vectors, where it leaves that open.

    Raises:
        UsageError: The family has no embedding, or it comes with `model.pretrained`.
        ModelError: `model.d_model` is given and is another.
        DataError: The file is damaged or of another format.
        CheckpointError: The folder holds no word vectors.
    """
    source = recipe.model.embeddings
    if source is None:
        return recipe
    family = registry.load("models", recipe.model.family)
    if family.KIND not in KINDS:
        raise UsageError(
            f"model.embeddings: the family {recipe.model.family!r} has no token embedding",
            fix="leave it out, or choose a neural family",
        )
    if recipe.model.pretrained is not None:
        raise UsageError(
            "model.embeddings and model.pretrained both say what the embedding begins with",
            fix="leave one of them out",
        )
    vectors = open_vectors(source)
    if (given := recipe.model.fields.get("d_model")) is not None:
        check_size(vectors, given)
        return recipe
    reason = f"the vectors of {Path(source).name} hold as many numbers"
    plan.choices.append(Choice("model.d_model", vectors.d_model, reason))
    return recipe.with_values({"model": {"d_model": vectors.d_model}})


def hashes(recipe: Recipe) -> dict[str, str]:
    """What identifies the vectors, for provenance and for resuming."""
    if recipe.model.embeddings is None:
        return {}
    return {"embeddings": " ".join(sha256(path) for path in find_files(recipe.model.embeddings))}


def begin(model: Any, recipe: Recipe, tokenizer: Tokenizer, run: Path, observer: Observer) -> None:
    """Put the vectors into a new model, unless a checkpoint of the run is about to replace it.

    Raises:
        ModelError: Their length is not the embedding's, or no token is a word among them.
    """
    source = recipe.model.embeddings
    if source is None or checkpoints(run):
        return
    found = initialize_embedding(model, tokenizer, open_vectors(source))
    observer.note(
        f"{found:,} of {tokenizer.vocab_size:,} tokens ({found / tokenizer.vocab_size:.0%}) begin "
        f"with the vector of their word in {Path(source).name}; the others at random"
    )
