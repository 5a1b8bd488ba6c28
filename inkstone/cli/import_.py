"""`inkstone import`: a model in another program's format becomes a Hugging Face folder."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The model; llama2.c's *.bin.")],
    to: Annotated[str, typer.Option("--to", help="A new folder.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(help="Its tokenizer: llama2.c's tok*.bin, *.model, tokenizer.json, …"),
    ] = None,
    json: options.Json = False,
) -> None:
    """Make a Hugging Face folder of a model in another program's format.

    inkstone import stories15M.bin --tokenizer tokenizer.bin --to models/stories

    The format is told by the content of the file. Nothing is overwritten.
    """
    import json as encoder
    import sys

    from inkstone import api
    from inkstone.cli.text import printable

    model = api.import_model(file, to, tokenizer=tokenizer)
    facts = model.describe()
    if json:
        print(encoder.dumps(facts, indent=2, ensure_ascii=False))
        return
    print(f"{to}  {facts['family']}, {facts['parameters']:,} parameters")
    if tokenizer is None:
        print("no tokenizer was given (--tokenizer): the folder knows token ids, not text",
              file=sys.stderr)  # fmt: skip
        return
    print(printable(f'next  inkstone generate {to} "Once upon a time"'))
