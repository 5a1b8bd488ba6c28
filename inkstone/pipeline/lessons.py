"""What the training loop gets from a task: batches, a loss, and a look at held-out data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from inkstone import __version__, registry
from inkstone.corpora.batches import BatchStream, windows
from inkstone.pipeline import objective
from inkstone.pipeline.prepare import Prepared
from inkstone.recipe import Recipe
from inkstone.tasks import language_modeling
from inkstone.tasks._objective import Objective
from inkstone.training.config import TrainingConfig
from inkstone.training.data import Stream
from inkstone.training.loop import Trainer

Loss = Callable[[Any, Any], tuple[Tensor, int]]


@dataclass(frozen=True)
class Lessons:
    """A task, as the training loop sees it.

    Attributes:
        stream: Endless batches.
        loss: (model, batch) → (summed nats, targets).
        evaluate: Scores of held-out data by name; None where nothing is held out.
        best_by: The score that decides which checkpoint is best.
        higher_is_better: Of that score.
        margin_by: As in `Trainer`.
        flops_per_target: Operations of training for one target; 0 where they are not counted.
        fingerprint: What a resumed run must agree on.
    """

    stream: Stream
    loss: Loss
    evaluate: Callable[[], dict[str, float]] | None
    best_by: str = "nats_per_token"
    higher_is_better: bool = False
    margin_by: str | None = None
    flops_per_target: float = 0.0
    fingerprint: dict[str, str] = field(default_factory=dict)

    def trainer(self, model: Any, config: TrainingConfig, run: Path, **more: Any) -> Trainer:
        """The loop over them; `more` is what `Trainer` gets besides."""
        return Trainer(
            model, self.stream, config, run, loss=self.loss, evaluate=self.evaluate,
            best_by=self.best_by, higher_is_better=self.higher_is_better,
            margin_by=self.margin_by, fingerprint=self.fingerprint,
            flops_per_token=self.flops_per_target, **more,
        )  # fmt: skip


def of_text(recipe: Recipe, prepared: Prepared, model: Any, chosen: Objective | None) -> Lessons:
    """Those of plain text: by an objective, or to continue it where there is none."""
    tokens, seq_len, corpus = recipe.training.tokens_per_step, recipe.corpus.seq_len, recipe.corpus
    assert tokens and seq_len
    known = {k: v for k, v in prepared.hashes.items() if k != "text"} | {"inkstone": __version__}
    if chosen is not None:
        return Lessons(
            chosen.stream(prepared.train, tokens=tokens, seed=corpus.seed),
            chosen.loss,
            objective.scorer(chosen, model, prepared.valid, recipe.evaluation.live_tokens),
            flops_per_target=objective.training_flops(chosen, recipe),
            fingerprint=known | {"task": recipe.task.model_dump_json()},
        )
    stream = BatchStream(
        prepared.train, batch_size=max(1, tokens // seq_len), seq_len=seq_len, seed=corpus.seed,
        mask_documents=corpus.mask_documents,
    )  # fmt: skip
    return Lessons(
        stream, language_modeling.loss, _scorer(model, prepared, recipe),
        flops_per_target=_training_flops(recipe), fingerprint=known,
    )  # fmt: skip


def _training_flops(recipe: Recipe) -> float:
    """Operations of training on one token: three forward passes (Kaplan et al. 2020, §2.1)."""
    family = registry.load("models", recipe.model.family)
    config = family.Config(**recipe.model.fields)
    return 3.0 * float(family.flops_per_token(config, recipe.corpus.seq_len))


def _scorer(model: Any, prepared: Prepared, recipe: Recipe) -> Any:
    valid, seq_len = prepared.valid, recipe.corpus.seq_len
    if valid is None or valid.n_tokens < 2 or seq_len is None:
        return None

    def score() -> dict[str, float]:
        batches = windows(
            valid, seq_len, max_tokens=recipe.evaluation.live_tokens,
            mask_documents=recipe.corpus.mask_documents,
        )  # fmt: skip
        return {"nats_per_token": language_modeling.evaluate(model, batches).nats_per_token}

    return score
