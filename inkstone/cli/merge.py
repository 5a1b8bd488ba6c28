"""`inkstone merge`: a LoRA adapter added to the weights that it was trained on."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    base: options.RunOrModel,
    adapter: Annotated[
        str, typer.Argument(metavar="ADAPTER", help="A folder in peft's format, or its run.")
    ],
    to: Annotated[str, typer.Option(help="New folder for the model.")],
    json: options.Json = False,
) -> None:
    """Write one model out of a base and a LoRA adapter.

    inkstone merge runs/base runs/polite/adapter --to models/polite
    """
    import json as encoder

    from inkstone import api

    facts = api.merge(base, adapter, to).describe()
    line = f"{facts['folder']}: {facts['family']}, {facts['parameters']:,} parameters"
    print(encoder.dumps(facts, indent=2, ensure_ascii=False) if json else line)
