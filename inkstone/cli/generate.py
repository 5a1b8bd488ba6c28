"""`inkstone generate`: continue a prompt, streaming to stdout."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    run: options.RunOrModel,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="Text to continue; without it, stdin is read.")
    ] = None,
    suffix: Annotated[
        str | None, typer.Option(help="Write what stands between the prompt and this.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Sample from the k likeliest.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample from this share of mass.")] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens less likely than this share of the best.")
    ] = None,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: repeat less.")] = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. Repeatable.")
    ] = None,
    json_schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="The answer is JSON that fits this schema.")
    ] = None,
    regex: Annotated[str | None, typer.Option(help="The answer fits this expression.")] = None,
    choice: Annotated[
        list[str] | None, typer.Option(help="The answer is one of these. Repeatable.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For the same text again.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Continuations.")] = 1,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Continue a text with a trained model.

    inkstone generate runs/mine "Once upon a time" --temperature 0.7
    """
    import json as encoder
    import sys
    from pathlib import Path

    from inkstone import api
    from inkstone.cli.text import printable
    from inkstone.errors import UsageError
    from inkstone.files import read_json

    text = " ".join(prompt) if prompt else ("" if sys.stdin.isatty() else sys.stdin.read())
    model = api.load(run, device=device)
    settings = {
        "max_tokens": max_tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p,
        "min_p": min_p, "repetition_penalty": repetition_penalty, "stop": tuple(stop or ()),
        "seed": seed, "regex": regex, "choice": tuple(choice or ()),
        "json_schema": None if json_schema is None else read_json(Path(json_schema)),
    }  # fmt: skip
    settings = {key: value for key, value in settings.items() if value is not None}
    if suffix is not None:
        if count > 1:
            raise UsageError("--suffix asks for one text, and --count for several")
        filled = model.fill(text, suffix, **settings)
        print(encoder.dumps(filled.to_dict(), ensure_ascii=False, indent=2) if json
              else printable(str(filled)))  # fmt: skip
        return
    if json or count > 1:
        results = model.generate([text] * count, **settings)
        if json:
            rows = [
                {"prompt": text, "text": x.text, "tokens": len(x.ids),
                 "finish_reason": x.finish_reason}
                for x in results
            ]  # fmt: skip
            print(encoder.dumps(rows if count > 1 else rows[0], ensure_ascii=False, indent=2))
        else:
            print("\n\n".join(printable(text + x.text) for x in results))
        return
    pieces = model.stream(text, **settings)  # what cannot be is refused before anything is shown
    sys.stdout.write(printable(text))
    for piece in pieces:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
