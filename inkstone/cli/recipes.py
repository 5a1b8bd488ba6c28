"""`inkstone recipes`: what is shipped."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's file.")] = None,
    json: options.Json = False,
) -> None:
    """List the shipped recipes, or print one to start your own from."""
    import json as encoder

    from inkstone import recipe

    if name is not None:
        text = recipe.find(name).read_text(encoding="utf-8")
        print(encoder.dumps({"name": name, "toml": text}) if json else text, end="\n" * json)
        return
    found = recipe.shipped()
    if json:
        print(encoder.dumps(found, indent=2))
        return
    width = max(map(len, found))
    for key, line in found.items():
        print(f"{key:{width}}  {line}")
    print(f"\ninkstone train {next(iter(found))} --data FOLDER --run runs/mine")
