"""`inkstone train`: from text to a model, from a recipe or from a folder and some minutes."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from inkstone.cli import options

SETTING = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_.-]+=", re.ASCII)


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RECIPE] [SECTION.KEY=VALUE]...",
            help="A shipped recipe (see `inkstone recipes`) or a .toml file; then any settings.",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Folder, file or glob of text; - is stdin. May be given several times."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time to train; everything else follows. Default 10.")
    ] = None,
    run: Annotated[str | None, typer.Option(help="New folder for the run.")] = None,
    resume: Annotated[
        str | None, typer.Option(metavar="RUN", help="Continue a run that was interrupted.")
    ] = None,
    cache: options.Cache = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a language model on your own text.

    inkstone train --data books/ --minutes 10 --run runs/mine

    Size, batch, learning rate and schedule follow from the data and this machine's measured speed;
    each is printed with its reason and can be set: model.d_model=256 training.lr=0.002
    """
    from inkstone.cli.session import run_training
    from inkstone.errors import UsageError

    words = list(words or [])
    recipe = words.pop(0) if words and not SETTING.match(words[0]) else None
    extra = [w for w in words if not SETTING.match(w)]
    if extra:
        raise UsageError(
            f"cannot read {extra[0]!r}",
            fix="settings look like training.lr=0.001; data is given with --data",
        )
    if resume is not None and (recipe or words or data or run or minutes is not None):
        raise UsageError(
            "a run is continued exactly as it was started: --resume takes no other setting",
            fix="to change something, start a new run with --run",
        )
    if resume is None and recipe is None and not data and not words:
        raise UsageError(
            "nothing to train on",
            fix="inkstone train --data FOLDER --minutes 10, or try `inkstone demo`",
        )
    run_training(
        recipe, words, data=data, minutes=minutes, run=run, resume=resume, cache=cache,
        device=device, json=json, quiet=quiet,
    )  # fmt: skip
