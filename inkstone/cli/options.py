"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.")]
Cache = Annotated[
    str | None,
    typer.Option(
        envvar="INKSTONE_CACHE",
        help="Folder for prepared text and tokens, reused by later runs.",
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, a Hugging Face folder, or a hub name: gpt2.")
]
