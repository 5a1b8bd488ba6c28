"""What a run holds and where: its finished model, its best checkpoint, its adapter."""

from __future__ import annotations

from pathlib import Path

from inkstone.checkpoint.adapters import CONFIG, FOLDER
from inkstone.errors import CheckpointError
from inkstone.pipeline.folder import RECIPE, read_json
from inkstone.recipe import load
from inkstone.training.state import BEST, checkpoint_path, checkpoints
from inkstone.training.tail import Tail

MODEL, LOG = "model", "log.jsonl"
STEP = "step-"  # how the folder of a checkpoint begins


def find_model(folder: Path) -> Path:
    """The model folder that `folder` is or holds: of a run the finished model, else its best
    checkpoint, else the last one.

    Raises:
        CheckpointError: There is none, or none yet.
    """
    for path in (folder, folder / MODEL):
        if (path / "config.json").is_file():
            return path
    found = checkpoints(folder)
    if found:
        best = read_json(folder / BEST).get("step")
        path = checkpoint_path(folder, best) if isinstance(best, int) else found[-1]
        return path if path.is_dir() else found[-1]
    fix = "give a run folder or a Hugging Face model folder"
    if not folder.exists():
        raise CheckpointError(f"{folder} does not exist", fix=fix)
    if when := first_checkpoint(folder):
        raise CheckpointError(
            f"{folder} has no checkpoint yet: {when}",
            fix="wait for it, or train with a smaller training.save_every",
        )
    raise CheckpointError(f"{folder} holds no model and no checkpoint", fix=fix)


def find_adapter(folder: Path) -> Path:
    """The adapter folder that `folder` is or holds; of a run that of the model that is found.

    Raises:
        CheckpointError: There is none, or none yet.
    """
    for path in (folder, folder / FOLDER):
        if (path / CONFIG).is_file():
            return path
    found = find_model(folder) / FOLDER
    if not (found / CONFIG).is_file():
        raise CheckpointError(
            f"{folder} holds no adapter",
            fix="give a folder in peft's format, or a run that trained with lora.rank",
        )
    return found


def first_checkpoint(run: Path) -> str | None:
    """How far a run is and when its first checkpoint comes, for whoever asks before; None where
    `run` is no run."""
    if not (run / RECIPE).is_file():
        return None
    training = load(run / RECIPE).training
    tail = Tail(run / LOG)
    tail.read()
    steps = [n for n in (training.eval_every, training.save_every, training.max_steps) if n]
    when = [f"at step {min(steps):,}"] if steps else []
    if training.save_every is None:
        when.append(f"after {training.save_minutes:g} minutes of training")
    step = tail.last.get("step") or 0
    return f"it is at step {step:,}, and the first one comes {' or '.join(when)}"


def step_of(path: Path) -> int | None:
    """At which step of its training a model or an adapter was saved, where its place tells."""
    folder = path.parent if path.name == FOLDER else path
    number = folder.name.removeprefix(STEP)
    if folder.name.startswith(STEP) and number.isdecimal():
        return int(number)
    run = path.parent if path.name in (MODEL, FOLDER) else None
    step = None if run is None else read_json(run / BEST).get("step")
    return step if type(step) is int else None
