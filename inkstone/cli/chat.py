"""`inkstone chat`: talk with a model on the terminal, or one message a line through a pipe."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options

HELP = "/reset forgets the conversation, /quit ends it (so does Ctrl-D)"


def command(
    run: options.RunOrModel,
    system: Annotated[str | None, typer.Option(help="Instructions ahead of the talk.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens a reply at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int | None, typer.Option(help="For the same replies again.")] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Talk with a trained model.

    With stdin not a terminal, each line of it is one message and each reply one paragraph.
    """
    import sys

    from inkstone import api
    from inkstone.cli.text import printable

    model = api.load(run, device=device)
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        settings["seed"] = seed
    talk = model.conversation(system=system)
    interactive = sys.stdin.isatty()
    if talk.warning:
        print(printable(talk.warning), file=sys.stderr)
    if interactive:
        print(HELP, file=sys.stderr)
    while True:
        message = _ask(interactive)
        if message is None or message.strip() == "/quit":
            return
        if message.strip() == "/reset":
            talk = model.conversation(system=system)
            continue
        if not message.strip():
            continue
        _answer(talk, message, settings, json)


def _ask(interactive: bool) -> str | None:
    import sys

    if not interactive:
        line = sys.stdin.readline()
        return line.rstrip("\n") if line else None
    try:
        return input("> ")
    except EOFError:
        print(file=sys.stderr)
        return None


def _answer(talk: object, message: str, settings: dict[str, float], json: bool) -> None:
    import json as encoder
    import sys

    from inkstone.cli.text import printable

    pieces = talk.say(message, **settings)  # type: ignore[attr-defined]
    if json:
        row = {"role": "assistant", "content": "".join(pieces)}
        print(encoder.dumps(row, ensure_ascii=False), flush=True)
        return
    for piece in pieces:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
