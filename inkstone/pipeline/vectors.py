"""Word vectors from a recipe: words → tokens → vocabulary (→ pairs) → train → score → folder."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from inkstone import __version__, registry
from inkstone.checkpoint import atomic_folder, read_tensors, recover, verify_folder, write_tensors
from inkstone.checkpoint.vectors import save_vectors
from inkstone.corpora.shards import Corpus
from inkstone.errors import CheckpointError, ModelError, RunError, UsageError
from inkstone.evaluation.vectors import evaluate
from inkstone.files import read_json, write_atomic, write_json
from inkstone.pipeline import folder
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.prepare import Prepared, keep_stdin, prepare
from inkstone.pipeline.stages import StageCache, cache_folder, code_hash, key_of
from inkstone.planning.plan import Choice
from inkstone.recipe import Recipe
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.words import word_names
from inkstone.training.lock import run_lock
from inkstone.training.log import JsonLog, StepInfo
from inkstone.training.signals import Signals, TrainingInterrupted
from inkstone.vectors.cooccurrence import Pairs
from inkstone.vectors.table import Vectors
from inkstone.vectors.trainer import Trainer
from inkstone.vectors.vocabulary import BREAK, Vocabulary, choose

STATE = "state"  # folder of an unfinished run
LOG_S = 1.0  # between two rows of the log
MAX_EPOCHS = 1000  # that minutes may buy
COUNT_TOKENS = 1 << 22  # counted at a time
SHOWN, NEAREST = 5, 6  # words that the result shows, and neighbours of each


class TokenRows:
    """A corpus of tokens as rows of the vocabulary.

    Args:
        corpus: Token shards.
        row: [vocab_size] of every token.
    """

    def __init__(self, corpus: Corpus, row: npt.NDArray[np.int32]) -> None:
        self._corpus, self._row = corpus, row.copy()
        self._row[corpus.manifest.eos_id] = BREAK

    @property
    def n_tokens(self) -> int:
        return self._corpus.n_tokens

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int32]:
        """[stop − start]."""
        return self._row[self._corpus.tokens(start, stop)]


def train(
    recipe: Recipe, run: Path, *, cache: Path | None = None, observer: Observer
) -> dict[str, Any]:
    """Train word vectors in a new folder; arguments, result and errors as in `pipeline.train`."""
    stages = StageCache(cache_folder(cache), observer)
    folder.check_new(run, recipe.data.path)
    folder.check_outside(stages.folder, recipe.data.path, "prepared data", "--cache")
    if "-" in recipe.data.path:
        if len(recipe.data.path) > 1:
            raise UsageError("stdin (-) cannot be mixed with other data")
        recipe = recipe.with_data([keep_stdin(stages)])
    tests = [str(Path(p).resolve()) for p in recipe.evaluation.vectors]
    for path in tests:
        if not Path(path).is_file():  # better now than after the training
            raise UsageError(f"evaluation.vectors: there is no file {path}")
    recipe = recipe.with_values({"evaluation": {"vectors": tests}})
    began = time.monotonic()
    prepared = prepare(recipe, stages, "cpu")
    trainer = _trainer(prepared.recipe, prepared, stages)
    choices = [*prepared.plan.choices, *_epochs(prepared.recipe, trainer)]
    observer.choices(choices)
    values = {"model": {"epochs": trainer.epochs}}
    resolved = prepared.recipe.with_values(values)
    notes = {c.key: c.reason for c in choices if c.chosen}
    folder.create(
        run,
        f"# The resolved recipe of {run.name}, written by Inkstone {__version__}.\n\n"
        + resolved.to_toml(notes),
        data={
            "hashes": prepared.hashes,
            "statistics": prepared.statistics.to_dict(),
            "line": prepared.statistics.line(),
        },
        plan={"choices": [asdict(x) for x in choices]},
    )
    return _train_and_finish(resolved, prepared, trainer, run, observer, began)


def resume(
    run: Path, recipe: Recipe, record: dict[str, Any], *, cache: Path | None, observer: Observer
) -> dict[str, Any]:
    """Continue an interrupted run where it was saved last, or from its start.

    Raises:
        RunError: The data or the vocabulary has changed.
    """
    began = time.monotonic()
    stages = StageCache(cache_folder(cache), observer)
    prepared = prepare(recipe, stages, "cpu")
    then = {k: v for k, v in record.get("hashes", {}).items() if k != "text"}
    if then != {k: v for k, v in prepared.hashes.items() if k != "text"}:
        raise RunError(
            f"{run} cannot be continued: its data changed since it began",
            fix="put the data back as it was, or start a new run with --run",
        )
    trainer = _trainer(recipe, prepared, stages)
    return _train_and_finish(recipe, prepared, trainer, run, observer, began)


def _trainer(recipe: Recipe, prepared: Prepared, stages: StageCache) -> Trainer:
    """The family's model over the corpus's words."""
    family = registry.load("models", recipe.model.family)
    config = family.Config(**recipe.model.fields)
    vocabulary, row = _vocabulary(prepared.train, prepared.tokenizer, config)
    stages.observer.stage_done(
        "words", f"{len(vocabulary):,} in the vocabulary, seen "
        f"{config.min_count:,} times or more", 0.0,
    )  # fmt: skip
    words: Any = TokenRows(prepared.train, row)
    seed = recipe.training.seed
    if hasattr(family, "count_pairs"):
        words = _pairs(family, config, vocabulary, words, prepared, seed, stages)
    model: Trainer = family.Model(config, vocabulary, words, seed=seed)
    if not model.fast:
        stages.observer.note(
            "Numba is not installed: training takes some hundred times longer "
            "(pip install 'inkstone[vectors]')"
        )
    return model


def _vocabulary(
    corpus: Corpus, tokenizer: Tokenizer, config: Any
) -> tuple[Vocabulary, npt.NDArray[np.int32]]:
    """The tokenizer's words by frequency, without control tokens."""
    size = corpus.manifest.vocab_size
    counts = np.zeros(size, np.int64)
    for start in range(0, corpus.n_tokens, COUNT_TOKENS):
        ids = corpus.tokens(start, min(start + COUNT_TOKENS, corpus.n_tokens))
        counts += np.bincount(ids, minlength=size)
    names = word_names(tokenizer)
    nameless = [i for i, name in enumerate(names) if not name]
    return choose(
        names, counts, min_count=config.min_count, max_words=config.max_words,
        excluded=nameless,
    )  # fmt: skip


def _pairs(
    family: ModuleType,
    config: Any,
    vocabulary: Vocabulary,
    words: TokenRows,
    prepared: Prepared,
    seed: int,
    stages: StageCache,
) -> Pairs:
    """GloVe's matrix, counted once for all runs on the same words."""
    key = key_of(
        "pairs", code_hash("vectors"), prepared.hashes["train"], prepared.hashes["tokenizer"],
        config.window, config.min_count, config.max_words, seed,
    )  # fmt: skip

    def build(out: Path) -> str:
        progress = stages.observer.progress
        pairs = family.count_pairs(config, vocabulary, words, out, seed=seed, progress=progress)
        return f"{len(pairs):,} pairs of words, window {config.window}"

    return Pairs(stages.get("pairs", key, build, lambda x: f"{len(Pairs(x)):,} pairs of words"))


def _epochs(recipe: Recipe, trainer: Trainer) -> list[Choice]:
    """As many passes as fit into the minutes, where minutes are given and passes are not."""
    minutes = recipe.training.minutes
    if "epochs" in recipe.model.fields or minutes is None:
        return []
    rate = trainer.rate()
    trainer.epochs = max(1, min(MAX_EPOCHS, int(minutes * 60 * rate / max(1, trainer.units))))
    reason = f"{minutes:g} minutes at {rate:,.0f} {trainer.unit} a second, measured here"
    return [Choice("model.epochs", trainer.epochs, reason)]


def _train_and_finish(
    recipe: Recipe,
    prepared: Prepared,
    trainer: Trainer,
    run: Path,
    observer: Observer,
    began: float,
) -> dict[str, Any]:
    observer.stage("train")
    trainer.compile()
    started = time.monotonic()
    with run_lock(run):
        _restore(run / STATE, trainer)
        first = trainer.units_done
        loss = _advance(recipe, trainer, run, observer)
        spent = time.monotonic() - started
        observer.training_ended()
        rate = (trainer.units_done - first) / max(1e-9, spent)
        line = f"{trainer.epochs} epochs of {trainer.units:,} {trainer.unit}, {rate:,.0f}/s"
        observer.stage_done("train", line, spent)
        facts = {"training_s": spent, "rate": rate, "unit": trainer.unit, "loss": loss}
        return _finish(recipe, prepared, trainer, run, observer, facts, began)


def _advance(recipe: Recipe, trainer: Trainer, run: Path, observer: Observer) -> float | None:
    """Train to the end; every few minutes, and when a signal comes, the state is saved.

    Returns:
        The last loss that was seen.

    Raises:
        TrainingInterrupted: A signal came; the state is on the disk.
    """
    signals, log = Signals(), JsonLog(run / "log.jsonl", trainer.done, observer.note)
    began = saved = logged = time.monotonic()
    first, last_units = trainer.units_done, trainer.units_done
    loss = float("nan")

    def tell(done: int) -> None:
        nonlocal logged, last_units, loss
        now = time.monotonic()
        units = trainer.units * done // trainer.chunks
        fresh = trainer.loss()
        loss = fresh if math.isfinite(fresh) else loss
        rate = (units - last_units) / max(1e-9, now - logged)
        overall = (units - first) / max(1e-9, now - began)
        left = trainer.units * trainer.epochs - units
        info = StepInfo(
            step=done,
            max_steps=trainer.total,
            loss=loss,
            lr=trainer.lr(done),
            grad_norm=math.nan,
            tokens=units,
            tokens_per_s=rate,
            mfu=math.nan,
            epoch=units / max(1, trainer.units),
            elapsed_s=now - began,
            remaining_s=left / overall if overall else math.nan,
        )
        logged, last_units = now, units
        log.on_step(info)
        observer.step(info)

    def pause(done: int) -> bool:
        now = time.monotonic()
        if now - logged >= LOG_S:
            tell(done)
        return signals.received is not None or now - saved >= recipe.training.save_minutes * 60

    with signals.watch(lambda: None):
        while trainer.done < trainer.total:
            trainer.advance(pause=pause)
            if signals.received is not None and trainer.done < trainer.total:
                _save_state(run / STATE, trainer)
                raise TrainingInterrupted(signals.received, trainer.done)
            if trainer.done < trainer.total:
                _save_state(run / STATE, trainer)
                saved = time.monotonic()
        tell(trainer.done)
    _check_finite(trainer)
    return loss if math.isfinite(loss) else None


def _check_finite(trainer: Trainer) -> None:
    if not all(np.isfinite(array).all() for array in trainer.arrays.values()):
        raise ModelError("training diverged: a vector is no longer finite", fix="lower model.lr")


def _save_state(target: Path, trainer: Trainer) -> None:
    with atomic_folder(target) as out:
        write_tensors(
            out / "arrays.safetensors", {k: torch.from_numpy(v) for k, v in trainer.arrays.items()}
        )
        write_json(out / "state.json", trainer.state())


def _restore(target: Path, trainer: Trainer) -> None:
    recover(target)
    if not target.is_dir():
        return
    verify_folder(target)
    arrays = {k: v.numpy() for k, v in read_tensors(target / "arrays.safetensors").items()}
    try:
        trainer.load_state(read_json(target / "state.json"), arrays)
    except CheckpointError as error:
        raise RunError(f"{target}: {error.message}", fix="start a new run with --run") from error


def _finish(
    recipe: Recipe,
    prepared: Prepared,
    trainer: Trainer,
    run: Path,
    observer: Observer,
    facts: dict[str, Any],
    began: float,
) -> dict[str, Any]:
    """Score, save, and say what came of it."""
    observer.stage("evaluate")
    started = time.monotonic()
    vectors = trainer.vectors()
    tests = [(Path(p).name, evaluate(vectors, p)) for p in recipe.evaluation.vectors]
    scores = {name: _main_score(test) for name, test in tests}
    neighbors = nearest(vectors, recipe.evaluation.neighbors)
    line = ", ".join(f"{name} {value:.1%}" for name, value in scores.items() if value is not None)
    observer.stage_done("evaluate", line or "no tests are given", time.monotonic() - started)
    remembered = recipe.to_dict()
    if paths := remembered.get("data", {}).get("path"):
        remembered["data"]["path"] = [Path(p).name for p in paths]
    info = {
        "task": "vectors",
        "recipe": remembered,
        "data": {"hashes": prepared.hashes, "statistics": prepared.statistics.to_dict()},
        "scores": scores,
    }
    with atomic_folder(run / "model") as out:
        config = trainer.config.model_dump(mode="json")
        save_vectors(out, vectors, family=recipe.model.family, config=config, info=info)
    result = {
        "kind": "vectors",
        "run": str(run),
        "model": str(run / "model"),
        "words": len(vectors),
        "d_model": vectors.d_model,
        "epochs": trainer.epochs,
        "scores": {name: _without_nan(test.to_dict()) for name, test in tests},
        "neighbors": neighbors,
        **facts,
        "evaluation_s": time.monotonic() - started,
        "total_s": time.monotonic() - began,
        "statistics": prepared.statistics.line(),
    }
    write_atomic(run / folder.RESULT, json.dumps(result, indent=1, ensure_ascii=False))
    shutil.rmtree(run / STATE, ignore_errors=True)
    observer.result(result)
    return result


def nearest(vectors: Vectors, words: Sequence[str] = ()) -> dict[str, list[list[Any]]]:
    """Some words with their nearest: {word: [[neighbour, cosine], …]}.

    Args:
        vectors: Where to look.
        words: Which; those without a vector are left out. Empty: of frequent to rare.
    """
    shown = [w for w in words if w in vectors]
    if not shown:
        places = np.geomspace(min(100, len(vectors)), len(vectors), SHOWN + 1)[:-1].astype(int)
        shown = [vectors.words[i - 1] for i in dict.fromkeys(places.tolist())]
    return {
        word: [[n.word, round(n.score, 4)] for n in vectors.most_similar(word, top=NEAREST)]
        for word in shown
    }


def _main_score(test: Any) -> float | None:
    value = test.accuracy if hasattr(test, "accuracy") else test.spearman
    return round(value, 6) if math.isfinite(value) else None


def _without_nan(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
