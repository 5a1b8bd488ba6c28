"""`inkstone answer`: answer a question out of a folder of documents, and say where it stands."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options

AROUND = 60  # characters of the passage that are shown on either side


def command(
    run: options.RunOrModel,
    question: Annotated[str, typer.Argument(help="The question.")],
    documents: Annotated[
        str | None,
        typer.Option(help="Folder or file to look the answer up in; without it, stdin is read."),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(help="A model that looks passages up by meaning too; else by words alone."),
    ] = None,
    top: Annotated[int, typer.Option(min=1, max=100, help="Answers at most.")] = 1,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Answer a question with a span of your documents, and cite the passage.

    inkstone answer runs/qa "Who wrote it?" --documents notes/

    The index of the documents is kept, as `inkstone search` keeps it.
    """
    import sys
    from json import dumps

    from inkstone import api
    from inkstone.cli.search import open_index
    from inkstone.cli.text import printable

    model = api.load(run, device=device)
    if documents is None:
        answer = model.answer(question, sys.stdin.read())
        row = {"question": question, **answer.to_dict()}
        print(dumps(row, ensure_ascii=False) if json else printable(str(answer)))
        return
    index = open_index(encoder, documents, device=device, quiet=quiet)
    found = model.answer_from(question, index, top=top)
    if json:
        rows = [one.to_dict() for one in found]
        print(dumps({"question": question, "answers": rows}, ensure_ascii=False))
        return
    if not found:
        print("no answer found in these documents", file=sys.stderr)
    for one in found:
        text, answer = one.passage.text, one.answer
        before = text[max(0, answer.start - AROUND) : answer.start]
        behind = text[answer.end : answer.end + AROUND]
        print(printable(answer.text))
        print(printable(f"    {one.passage.place}: …{before}«{answer.text}»{behind}…"))
