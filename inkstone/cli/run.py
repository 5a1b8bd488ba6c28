"""`inkstone run`: use a finished task on a text, or on a file of any size."""

from __future__ import annotations

import enum
from typing import Annotated

import typer

from inkstone.cli import options


class OnError(enum.StrEnum):
    """As `text.on_error` of a recipe."""

    STOP = "stop"
    SKIP = "skip"


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
    on_error: Annotated[
        OnError, typer.Option(help="At a bad line of --input: stop, or skip it and count it.")
    ] = OnError.STOP,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting of the task: task.mode=document, task.n_beams=1."),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Classify, tag or translate with a trained model.

    inkstone run runs/reviews "What a film!"

    inkstone run runs/reviews --input new.csv --output predicted.jsonl

    A file may be of any size. Its output appears when it is complete; if it was cut off, the same
    command goes on where it stopped.
    """
    import json as encoder
    import sys

    from inkstone import api
    from inkstone.cli.text import printable
    from inkstone.errors import UsageError
    from inkstone.recipe import parse_override

    if input is not None and text:
        raise UsageError("give texts or --input, not both")
    if output is not None and input is None:
        raise UsageError("--output needs --input", fix="write --input FILE --output NEW.jsonl")
    model = api.load(run, device=device)
    if settings:
        changes = [parse_override(setting) for setting in settings]
        if others := [section for section, *_ in changes if section != "task"]:
            raise UsageError(f"--set {others[0]}.…: only settings of the task can be changed here")
        model = model.with_task(**{key: value for _, key, value in changes})
    if input is not None:
        from inkstone.cli.progress import observer

        watcher = observer(quiet=quiet or output is None)  # rows on a terminal are progress enough
        try:
            count = model.predict_file(input, output, on_error=on_error.value, observer=watcher)
        finally:
            watcher.training_ended()  # leave the terminal as it was
        if json and output is not None:
            print(encoder.dumps({"output": output, "predictions": count}))
        return
    texts = text or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    for given, prediction in zip(texts, model.predict(texts), strict=True):
        if json:
            row = {"text": given, **prediction.to_dict()}
            print(encoder.dumps(row, ensure_ascii=False))
        else:
            print(printable(str(prediction)))
