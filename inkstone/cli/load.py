"""`inkstone load`: open a model, fetching it from the hub if it is named, and say what it is."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="gpt2, org/name, org/name@revision, or a folder.")
    ],
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Open a model and say what it is: a folder, or a name on the Hugging Face hub.

    inkstone load gpt2

    A folder of that name wins. Only settings, tokenizers and safetensors are downloaded, into the
    cache of huggingface_hub; HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold.
    """
    import json as encoder

    from inkstone import api
    from inkstone.cli.text import printable

    facts = api.load(name, device=device).describe()
    if json:
        print(encoder.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        shown = f"{value:,}" if isinstance(value, int) else str("none" if value is None else value)
        table.add_row(Text(key, style="bold"), Text(printable(shown), overflow="fold"))
    Console(highlight=False).print(table)
