"""`inkstone look`: conversations as a model is given them, with what it learns of them marked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.inspection.look import Shown

TASKS = {"chat": "instructions", "preferences": "preferences"}
WHOLE = 1 << 20  # tokens of a row where no model says how many


def command(
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="A table of conversations (- is JSON lines).")
    ],
    task: Annotated[str, typer.Option(help=f"What is learned: {', '.join(TASKS)}.")] = "chat",
    model: Annotated[
        str | None,
        typer.Option(
            help="A run or model folder, for its tokenizer and chat template; without one, a "
            "tokenizer is trained on the data."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Show so many conversations.")] = 5,
    seq_len: Annotated[
        int | None, typer.Option(min=8, help="Tokens of a row. Default: as the model was trained.")
    ] = None,
    html: Annotated[str | None, typer.Option(help="Write a page to this new file.")] = None,
    json: options.Json = False,
) -> None:
    """Show conversations as a model sees them, what it learns marked.

    inkstone look talks.jsonl --model runs/chat

    On a terminal what is learned is green; elsewhere, or with NO_COLOR, it stands in ⟦ ⟧.
    """
    import json as encoder
    import sys

    from inkstone import registry
    from inkstone.errors import UsageError
    from inkstone.files import write_new
    from inkstone.inspection.look import look, page, total

    if task not in TASKS:
        raise UsageError(f"unknown --task {task!r}", fix=registry.did_you_mean(task, TASKS))
    if html is not None and Path(html).exists():
        raise UsageError(f"{html} is there already", fix="choose another --html")
    module = registry.load("tasks", TASKS[task])
    tokenizer, most = _of_model(model)
    if tokenizer is None and not json:
        print("no --model: its tokenizer is trained on this data now", file=sys.stderr)
    chosen = module.Task(module.Config())
    rows = look(data, chosen, tokenizer, most=seq_len or most, limit=limit)
    if html is not None:
        held = list(rows)
        write_new(html, page(held, Path(data).name), "--html")
        print(f"{html}: {total(held)}")
    elif json:
        for row in rows:
            print(encoder.dumps(row.to_dict()))
    else:
        _print(rows)


def _of_model(name: str | None) -> tuple[Any, int]:
    """The tokenizer of a model folder, and how long its rows were."""
    from inkstone.files import read_json
    from inkstone.pipeline.locate import find_model
    from inkstone.tokenizers.tokenizer import Tokenizer

    if name is None:
        return None, WHOLE
    folder = find_model(Path(name))
    about = folder / "inkstone.json"
    length = read_json(about).get("max_length") if about.is_file() else None
    known = isinstance(length, int) and length > 0
    return Tokenizer.load(folder), length if known else WHOLE  # type: ignore[return-value]


def _print(rows: Any) -> None:
    """Colours on a terminal, brackets elsewhere."""
    from rich.console import Console

    from inkstone.cli.text import printable
    from inkstone.inspection.look import total

    console = Console(highlight=False, soft_wrap=True)
    plain = console.no_color or console.color_system is None
    held: list[Shown] = []
    for row in rows:
        held.append(row)
        console.print(printable(row.head), style="dim", markup=False)
        console.print(_marked(row, plain=plain), end="\n\n")
    console.print(total(held), markup=False)


def _marked(row: Shown, *, plain: bool) -> Any:
    from itertools import groupby

    from rich.text import Text

    from inkstone.cli.text import printable

    text = Text()
    for learned, run in groupby(row.pieces, key=lambda piece: piece.learned):
        text.append("⟦" * (plain and learned))
        for control, pieces in groupby(run, key=lambda piece: piece.control):
            style = "bold " * control + ("green" if learned else "cyan" * control)
            said = printable("".join(piece.text for piece in pieces))
            text.append(said, style="" if plain else style)
        text.append("⟧" * (plain and learned))
    return text
