"""Fine-tuning by LoRA adapters: what a run with `lora.rank` does otherwise than one without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from inkstone import __version__
from inkstone.checkpoint import atomic_folder
from inkstone.checkpoint.adapters import (
    ABOUT,
    FOLDER,
    adapter_state,
    base_fingerprint,
    save_adapter,
)
from inkstone.errors import UsageError
from inkstone.files import write_json
from inkstone.nn import lora
from inkstone.recipe import Recipe
from inkstone.tasks._base import Task
from inkstone.training.state import weights_of


def check(recipe: Recipe, task: Task[Any, Any]) -> None:
    """Whether a run can train adapters.

    Raises:
        UsageError: There are no weights to stand beside, or new ones would have to learn too.
    """
    if not recipe.lora.rank:
        return
    if not recipe.model.pretrained or not task.TALKS:
        raise UsageError(
            "lora.rank is for fine-tuning a decoder on conversations",
            fix="name its weights with model.pretrained, or leave lora.rank out",
        )


def check_vocabulary(recipe: Recipe, known: int, needed: int) -> None:
    """Whether the weights have a row for every token that the task needs.

    Raises:
        UsageError: They have not, and adapters alone are to learn.
    """
    if recipe.lora.rank and needed > known:
        raise UsageError(
            "the pretrained weights know no marks of turns, which adapters alone cannot learn",
            fix="fine-tune all weights first (leave lora.rank out), then adapters on the result",
        )


def fingerprint(recipe: Recipe) -> dict[str, str]:
    """What a resumed run must agree on."""
    return {"lora": recipe.lora.model_dump_json()} if recipe.lora.rank else {}


def attach(model: Any, recipe: Recipe) -> None:
    """Hang fresh adapters on a model, where the recipe asks for any."""
    config = recipe.lora
    if config.rank:
        alpha = 2.0 * config.rank if config.alpha is None else config.alpha
        lora.attach(model, config.rank, alpha, config.targets)


def saver(
    model: Any, recipe: Recipe, write: Callable[[Path, Any], None], info: dict[str, Any]
) -> Callable[[Path], None]:
    """Writes the model; of one with adapters the sum of both, and the adapters beside it.

    Args:
        model: In training.
        recipe: Of the run.
        write: (folder, model) → a model folder.
        info: What the folder remembers; an adapter remembers it, too.
    """
    base = Path(recipe.model.pretrained or "").name

    def save(out: Path) -> None:
        if not recipe.lora.rank:
            write(out, model)
            return
        write(out, lora.merged(model))
        (out / FOLDER).mkdir()
        save_adapter(out / FOLDER, model, base=base)
        about = {"name": base, "fingerprint": base_fingerprint(model)}
        write_json(out / FOLDER / ABOUT, {"inkstone": __version__, **info, "base": about})

    return save


def loader(model: Any, recipe: Recipe) -> Callable[[Path], dict[str, Tensor]]:
    """Reads back what `saver` wrote."""
    if not recipe.lora.rank:
        return weights_of
    return lambda folder: adapter_state(folder / FOLDER, model)


def keep(checkpoint: Path, run: Path) -> str | None:
    """Put the adapters of the best checkpoint into the run folder; gives where they are."""
    if not (checkpoint / FOLDER).is_dir():
        return None
    with atomic_folder(run / FOLDER) as out:
        for path in (checkpoint / FOLDER).iterdir():
            shutil.copyfile(path, out / path.name)
    return str(run / FOLDER)
