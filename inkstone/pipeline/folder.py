"""The run folder: claimed once, never overwritten, never inside its own input."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inkstone.errors import RunError, UsageError
from inkstone.files import write_atomic
from inkstone.recipe import Recipe, load

RECIPE, DATA, PLAN, RESULT = "recipe.toml", "data.json", "plan.json", "result.json"


def check_new(run: Path, data: Sequence[str]) -> None:
    """Refuse a folder that is taken, or that lies inside the data (it would become data).

    Raises:
        RunError: It already holds a run, or other files.
        UsageError: It lies inside a folder of the data.
    """
    if (run / RECIPE).exists():
        raise RunError(
            f"{run} already holds a run",
            fix=f"continue it with `inkstone train --resume {run}`, or choose another --run",
        )
    if run.is_dir() and any(run.iterdir()):
        raise RunError(f"{run} is not empty", fix="choose a new folder with --run")
    if run.exists() and not run.is_dir():
        raise RunError(f"{run} is a file, not a folder", fix="choose a new folder with --run")
    check_outside(run, data, "the run", "--run")


def check_outside(folder: Path, data: Sequence[str], what: str, option: str) -> None:
    """Refuse to write into a folder that is read from.

    Raises:
        UsageError: `folder` is, or lies inside, a folder of the data.
    """
    for given in data:
        source = Path(given)
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UsageError(
                f"{what} would be written to {folder}, inside its own data {source}",
                fix=f"choose a folder outside the data with {option}",
            )


def create(run: Path, recipe: str, **documents: dict[str, Any]) -> None:
    """Make the run folder with the resolved recipe and some JSON documents.

    Raises:
        RunError: The folder cannot be made, or somebody else has just claimed it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        for name, content in documents.items():
            write_atomic(run / f"{name}.json", json.dumps(content, indent=1))
        try:
            with open(run / RECIPE, "x", encoding="utf-8") as file:  # the claim: one can win
                file.write(recipe)
        except FileExistsError as error:
            raise RunError(f"{run} has just been claimed by another process") from error
    except OSError as error:
        raise RunError(f"cannot write the run folder {run}: {error.strerror}") from error


def read(run: Path) -> tuple[Recipe, dict[str, Any]]:
    """The resolved recipe of a run and what its data was.

    Raises:
        RunError: The folder holds no run.
    """
    if not (run / RECIPE).is_file():
        raise RunError(
            f"{run} holds no run ({RECIPE} is missing)",
            fix="give the folder that `inkstone train --run` wrote",
        )
    return load(run / RECIPE), read_json(run / DATA)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that the pipeline wrote; {} when it is absent.

    Raises:
        RunError: It is damaged.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged: {error}", fix="start a new run") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged: not an object", fix="start a new run")
    return value
