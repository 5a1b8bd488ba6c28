"""`inkstone demo`: the whole way on text that every Python installation carries."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    minutes: Annotated[float, typer.Option(help="Time to train.")] = 3.0,
    run: Annotated[str, typer.Option(help="Folder for the run.")] = "runs/demo",
    cache: options.Cache = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a small model in three minutes: no data, no network.

    The text is the English prose that Python itself carries: its documentation and docstrings.
    """
    from inkstone.cli.session import free_name, run_training

    run_training(
        None, ["data.embedded=python-prose"], data=None, minutes=minutes, run=str(free_name(run)),
        resume=None, cache=cache, device=device, json=json, quiet=quiet,
    )  # fmt: skip
