"""`inkstone run`: use a finished task on a text, or on a file of any size."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    run: options.RunOrModel,
    text: Annotated[
        list[str] | None, typer.Argument(help="Texts; without any, lines of stdin are read.")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(help="A .jsonl, .csv, .tsv or .parquet file; - is JSON lines on stdin."),
    ] = None,
    output: Annotated[
        str | None, typer.Option(help="New file for JSON lines; without it, they go to stdout.")
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Classify, tag or translate with a trained model.

    inkstone run runs/reviews "What a film!"

    inkstone run runs/reviews --input new.csv --output predicted.jsonl
    """
    import json as encoder
    import sys

    from inkstone import api
    from inkstone.cli.text import printable
    from inkstone.errors import UsageError

    if input is not None and text:
        raise UsageError("give texts or --input, not both")
    if output is not None and input is None:
        raise UsageError("--output needs --input", fix="write --input FILE --output NEW.jsonl")
    model = api.load(run, device=device)
    if input is not None:
        count = model.predict_file(input, output)
        if output is not None:
            print(f"{count:,} predictions in {output}", file=sys.stderr)
        return
    texts = text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for given, prediction in zip(texts, model.predict(texts), strict=True):
        if json:
            row = {"text": given, **prediction.to_dict()}
            print(encoder.dumps(row, ensure_ascii=False))
        else:
            print(printable(str(prediction)))
