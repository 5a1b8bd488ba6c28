"""`inkstone chat`: talk with a model on the terminal, or one message a line through a pipe."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inkstone.cli import options

HELP = "/reset forgets the conversation, /quit ends it (so does Ctrl-D)"


def command(
    run: options.RunOrModel,
    system: Annotated[str | None, typer.Option(help="Instructions ahead of the talk.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens a reply at most.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.8,
    seed: Annotated[int | None, typer.Option(help="For the same replies again.")] = None,
    candidates: Annotated[
        int, typer.Option(min=1, help="Answers to sample; the best by its scores is said.")
    ] = 1,
    safety: Annotated[
        float | None, typer.Option(help="Least probability of being safe. Default 0.5.")
    ] = None,
    scores: Annotated[
        bool, typer.Option("--scores", help="Show all candidates with their scores.")
    ] = False,
    sources: Annotated[
        str | None, typer.Option(help="Folder of text to look things up in and to cite.")
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Talk with a trained model.

    With stdin not a terminal, each line of it is one message and each reply one paragraph.

    A model of `inkstone train lamda-dialogue` may sample several answers, drop the unsafe and say
    the best, and may look things up:

    inkstone chat runs/lamda --candidates 8 --scores --sources notes/
    """
    import sys

    from inkstone import api
    from inkstone.cli.text import printable

    model = api.load(run, device=device)
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        settings["seed"] = seed
    choosing: dict[str, Any] = {"candidates": candidates, "sources": sources}
    if safety is not None:
        choosing["safety"] = safety
    talk = model.conversation(system=system, **choosing)
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
            talk = model.conversation(system=system, **choosing)
            continue
        if not message.strip():
            continue
        _answer(talk, message, settings, json, scores)


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


def _answer(talk: Any, message: str, settings: dict[str, float], json: bool, scores: bool) -> None:
    import json as encoder
    import sys

    from inkstone.cli.text import printable

    pieces = talk.say(message, **settings)
    if json:
        row = {"role": "assistant", "content": "".join(pieces)}
        chosen = getattr(talk.last, "to_dict", None)
        row = row if chosen is None else chosen()
        print(encoder.dumps(row, ensure_ascii=False), flush=True)
        return
    for piece in pieces:
        sys.stdout.write(printable(piece))
        sys.stdout.flush()
    sys.stdout.write("\n")
    for line in _notes(talk.last, scores):
        sys.stdout.write(f"{printable(line)}\n")
    sys.stdout.flush()


def _notes(answer: Any, scores: bool) -> list[str]:
    """Citations, and where asked for the candidates, of an answer that was chosen."""
    lines = [
        f"[{number}] {found.passage.place}: {' '.join(found.passage.text.split())}"
        for number, found in enumerate(getattr(answer, "citations", ()), 1)
    ]
    for candidate in getattr(answer, "candidates", ()) if scores else ():
        mark = " " if candidate.safe else "✗"
        rated = ", ".join(f"{name} {p:.2f}" for name, p in candidate.scores.items())
        text = " ".join(candidate.text.split())
        lines.append(f"  {mark} {candidate.quality:6.2f}  {text}  ({rated or 'log-likelihood'})")
    return lines
