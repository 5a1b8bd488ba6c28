"""Scores of a pre-trained model on texts that it has not seen, by the objective it learned by."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from inkstone import registry
from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.errors import CheckpointError, DataError
from inkstone.tasks._objective import Objective
from inkstone.text.normalize import normalize
from inkstone.tokenizers.tokenizer import Tokenizer

SHARD_TOKENS = 1 << 24


def objective_of(info: dict[str, Any], tokenizer: Tokenizer, seq_len: int) -> Objective:
    """The objective that a model folder remembers, as if somebody hostile had written it.

    Args:
        info: The contents of inkstone.json; its task is the name of an objective.
        tokenizer: Of the model.
        seq_len: The longest row that the model reads.

    Raises:
        CheckpointError: Its settings are malformed.
    """
    module = registry.load("tasks", str(info.get("task")))
    try:
        config = module.Config.model_validate(info.get("task_settings", {}))
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise CheckpointError(f"inkstone.json: task_settings: {problem}") from error
    objective: Objective = module.Objective(config, tokenizer, seq_len)
    return objective


def score_texts(objective: Objective, model: Any, texts: Iterable[str]) -> dict[str, Any]:
    """Scores and the rule they were computed by.

    Args:
        objective: Of the model.
        model: The network.
        texts: Documents; they are normalised as in training.

    Raises:
        DataError: There is no text.
    """
    tokenizer = objective.tokenizer
    with tempfile.TemporaryDirectory() as temporary:
        writer = ShardWriter(
            Path(temporary), vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id,
            shard_tokens=SHARD_TOKENS,
        )  # fmt: skip
        for text in filter(None, map(normalize, texts)):
            writer.write(*tokenizer.encode_arrays([text]))
        if not writer.n_tokens:
            raise DataError("there is no text to score")
        writer.finish(tokenizer=tokenizer.fingerprint(), n_bytes=0)
        report = objective.evaluate(model, objective.held_out(Corpus(Path(temporary))))
    return {
        "objective": objective.NAME, **report.to_dict(), "targets": report.targets,
        "rule": objective.rule,
    }  # fmt: skip
