"""Checkpoints of a run: everything that makes a resumed run bit-identical to an unbroken one.

`checkpoints/step-00000500/` is a Hugging Face folder with a `training/` folder inside: the
optimizer's tensors, and state.json with the counters, the position in the data and the state of the
random generators. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from inkstone.checkpoint import (
    atomic_folder,
    load_model,
    read_tensors,
    verify_folder,
    write_tensors,
)
from inkstone.errors import CheckpointError, InkstoneError, RunError
from inkstone.files import read_json, write_atomic
from inkstone.training.foundations import compare
from inkstone.training.optim import Optimizers

FORMAT = 1
BEST = "best.json"


@dataclass
class TrainingState:
    """Counters and positions at the end of a step.

    Attributes:
        step: Optimizer steps done.
        tokens: Targets seen.
        skipped: Batches whose loss or gradient was not finite, in all.
        skipped_in_a_row: Of these, since the last step.
        elapsed_s: Training time so far.
        evaluated_step: The step that was evaluated last.
        top_score: Best validation score, None before the first evaluation.
        stale_evals: Evaluations since that one.
        best_score: That of the checkpoint that counts as the best: the same, or one within the
            margin of it.
        best_step: The step it belongs to.
        stream: Position in the data.
        rng: States of torch's random generators, in hex, by device.
        fingerprint: Hashes, versions and settings that the run depends on.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    elapsed_s: float = 0.0
    evaluated_step: int = 0
    top_score: float | None = None
    stale_evals: int = 0
    best_score: float | None = None
    best_step: int | None = None
    stream: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, str] = field(default_factory=dict)
    fingerprint: dict[str, str] = field(default_factory=dict)


def checkpoint_path(run: Path, step: int) -> Path:
    """Folder of the checkpoint at a step."""
    return run / "checkpoints" / f"step-{step:08d}"


def checkpoints(run: Path) -> list[Path]:
    """All checkpoint folders of a run, oldest first; half-written ones have other names."""
    return sorted((run / "checkpoints").glob("step-" + "[0-9]" * 8))


def save(
    run: Path,
    state: TrainingState,
    optimizers: Optimizers,
    save_model: Callable[[Path], None],
    keep: int,
    *,
    best_by: str = "nats_per_token",
) -> Path:
    """Write a checkpoint atomically, then drop all but the newest `keep` and the best.

    Args:
        run: The run folder.
        state: Of the training.
        optimizers: Whose tensors are saved.
        save_model: Writes the model into a folder.
        keep: Checkpoints to keep.
        best_by: What the best score is called in best.json.

    Raises:
        CheckpointError: It could not be written (for example, the disk is full); the earlier
            checkpoints are intact.
    """
    target = checkpoint_path(run, state.step)
    with atomic_folder(target) as folder:
        save_model(folder)
        training = folder / "training"
        training.mkdir()
        write_tensors(training / "optimizer.safetensors", optimizers.state_tensors())
        content = json.dumps({"format": FORMAT, **asdict(state)}, indent=1)
        (training / "state.json").write_text(content, encoding="utf-8")
    if state.best_step is not None:
        _write_best(run, state, best_by)
    with contextlib.suppress(OSError):  # one too many does no harm, and the next save looks again
        found = checkpoints(run)
        best = checkpoint_path(run, state.best_step) if state.best_step is not None else None
        for old in found[:-keep]:
            if old != best:
                _remove(old)
    return target


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a checkpoint by the model's own names."""
    state: dict[str, torch.Tensor] = load_model(folder)[0].state_dict()
    return state


def restore(
    run: Path,
    model: Any,
    optimizers: Optimizers,
    fingerprint: dict[str, str],
    load: Callable[[Path], dict[str, torch.Tensor]] = weights_of,
) -> tuple[TrainingState | None, list[str]]:
    """Load the newest sound checkpoint into `model` and `optimizers`, and the random generators.

    `load` gives the weights that a checkpoint holds, as `model.state_dict()` names them.

    Damaged ones that are newer get the name `damaged-step-…`, so that nothing takes them for the
    newest again.

    Returns:
        The state (None when the run has no checkpoint at all), and sentences for the user.

    Raises:
        RunError: Something that the run depends on has changed since.
        CheckpointError: There are checkpoints, and every one is damaged.
    """
    messages: list[str] = []
    found = checkpoints(run)
    for position in reversed(range(len(found))):
        folder = found[position]
        try:
            verify_folder(folder)
            state = _read_state(folder / "training" / "state.json")
            messages += compare(state.fingerprint, fingerprint)
            weights = load(folder)
            tensors = read_tensors(folder / "training" / "optimizer.safetensors")
        except RunError:
            raise
        except (InkstoneError, OSError) as error:
            reason = str(error).splitlines()[0]
            messages.append(f"checkpoint {folder.name} is damaged ({reason}); trying an older one")
            continue
        model.load_state_dict(weights)
        optimizers.load_state_tensors(tensors)
        set_rng(state.rng)
        for damaged in found[position + 1 :]:
            with contextlib.suppress(OSError):
                damaged.rename(damaged.with_name(f"damaged-{damaged.name}"))
        return state, messages
    if found:
        raise CheckpointError(
            f"no checkpoint in {run} can be read: " + "; ".join(messages),
            fix="start again in a new folder",
        )
    return None, messages


def get_rng(device: torch.device) -> dict[str, str]:
    """States of the random generators that a training step on `device` may use."""
    found = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found[str(device)] = torch.cuda.get_rng_state(device)
    return {name: state.numpy().tobytes().hex() for name, state in found.items()}


def set_rng(states: dict[str, str]) -> None:
    """Put back what `get_rng` gave.

    Raises:
        CheckpointError: It is no such state.
    """
    for name, value in states.items():
        try:
            state = torch.frombuffer(bytearray.fromhex(value), dtype=torch.uint8)
            if name == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(state, name)
        except (ValueError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"random generator state of {name}: {error}") from error


def _write_best(run: Path, state: TrainingState, name: str) -> None:
    content = {"step": state.best_step, name: state.best_score}
    try:
        write_atomic(run / BEST, json.dumps(content))
    except OSError as error:
        raise CheckpointError(
            f"could not write {run / BEST}: {error.strerror}",
            fix="the checkpoints are intact; make room and continue the run",
        ) from error


def _remove(folder: Path) -> None:
    """Delete a checkpoint so that a half-deleted one is never taken for a whole one.

    The hidden name is one that the next save sweeps away.
    """
    hidden = folder.with_name(f".{folder.name}.tmp-{secrets.token_hex(4)}")
    with contextlib.suppress(OSError):
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _read_state(path: Path) -> TrainingState:
    raw = read_json(path)
    if raw.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{path}: format is not {FORMAT}", fix="use the version that wrote it"
        )
    try:
        return TrainingState(**raw)
    except TypeError as error:
        raise CheckpointError(f"{path}: {error}") from error
