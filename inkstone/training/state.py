"""Checkpoints of a run: everything that makes a resumed run bit-identical to an unbroken one.

`checkpoints/step-00000500/` is a Hugging Face folder with a `training/` folder inside: the
optimizer's tensors, and state.json with the counters, the position in the data and the state of the
random generator. Nothing is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from inkstone.checkpoint import atomic_folder, load_model, verify_folder
from inkstone.errors import CheckpointError, InkstoneError, RunError
from inkstone.training.optim import Optimizers

FORMAT = 1


@dataclass
class TrainingState:
    """Counters and positions at the end of a step.

    Attributes:
        step: Optimizer steps done.
        tokens: Target tokens seen.
        skipped: Steps whose loss or gradient was not finite, in all.
        elapsed_s: Training time so far.
        best_score: Lowest validation loss in nats per token, None before the first evaluation.
        best_step: The step it belongs to.
        stale_evals: Evaluations since the best one.
        stream: Position in the data.
        rng: State of torch's CPU generator, in hex.
        fingerprint: Hashes and versions of whatever the run depends on.
    """

    step: int = 0
    tokens: int = 0
    skipped: int = 0
    elapsed_s: float = 0.0
    best_score: float | None = None
    best_step: int | None = None
    stale_evals: int = 0
    stream: dict[str, Any] = field(default_factory=dict)
    rng: str = ""
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
) -> Path:
    """Write a checkpoint atomically, then drop all but the newest `keep` and the best.

    Raises:
        CheckpointError: It could not be written (for example, the disk is full); the earlier
            checkpoints are intact.
    """
    target = checkpoint_path(run, state.step)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        save_model(folder)
        training = folder / "training"
        training.mkdir()
        tensors = {k: v.contiguous() for k, v in optimizers.state_tensors().items()}
        safetensors.torch.save_file(tensors, training / "optimizer.safetensors")
        content = json.dumps({"format": FORMAT, **asdict(state)}, indent=1)
        (training / "state.json").write_text(content, encoding="utf-8")
    protected = {checkpoint_path(run, state.best_step)} if state.best_step is not None else set()
    for old in checkpoints(run)[:-keep]:
        if old not in protected:
            shutil.rmtree(old, ignore_errors=True)
    return target


def restore(
    run: Path, model: Any, optimizers: Optimizers, fingerprint: dict[str, str]
) -> tuple[TrainingState, list[str]]:
    """Load the newest sound checkpoint into `model` and `optimizers`.

    Returns:
        The state, and a sentence for every damaged checkpoint that was passed over. Step 0 when
        the run has no checkpoint at all.

    Raises:
        RunError: Something that the run depends on has changed since.
        CheckpointError: There are checkpoints, and every one is damaged.
    """
    messages: list[str] = []
    found = checkpoints(run)
    for folder in reversed(found):
        try:
            verify_folder(folder)
            state = _read_state(folder / "training" / "state.json")
            loaded, _, _ = load_model(folder)
            tensors = safetensors.torch.load_file(folder / "training" / "optimizer.safetensors")
        except (InkstoneError, OSError, ValueError, safetensors.SafetensorError) as error:
            reason = str(error).splitlines()[0]
            messages.append(f"checkpoint {folder.name} is damaged ({reason}); trying an older one")
            continue
        _compare(state.fingerprint, fingerprint)
        model.load_state_dict(loaded.state_dict())
        try:
            optimizers.load_state_tensors(tensors)
        except KeyError as error:
            raise CheckpointError(f"{folder}: optimizer state does not fit: {error}") from error
        torch.set_rng_state(torch.frombuffer(bytearray.fromhex(state.rng), dtype=torch.uint8))
        return state, messages
    if found:
        raise CheckpointError(
            f"no checkpoint in {run} can be read: " + "; ".join(messages),
            fix="start again in a new folder",
        )
    return TrainingState(), messages


def _read_state(path: Path) -> TrainingState:
    raw = json.loads(path.read_text(encoding="utf-8"))
    if raw.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{path}: format is not {FORMAT}", fix="use the version that wrote it"
        )
    try:
        return TrainingState(**raw)
    except TypeError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _compare(then: dict[str, str], now: dict[str, str]) -> None:
    changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]
    if changed:
        details = "; ".join(f"{k}: {then.get(k)} then, {now.get(k)} now" for k in changed)
        raise RunError(
            f"cannot resume, the run depends on something that has changed ({details})",
            fix="restore it, or start a new run",
        )
