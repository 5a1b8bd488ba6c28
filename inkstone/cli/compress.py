"""`inkstone compress`: a model with fewer bits a weight, beside what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.pipeline.compress import Compressed, Facts


def command(
    run: options.RunOrModel,
    to: Annotated[str, typer.Option(help="int8, int4 or bf16.")],
    out: Annotated[str, typer.Option(help="New folder for the small model.")],
    data: Annotated[
        str | None,
        typer.Option(help="Text or examples like those it will read; weights are rounded by it."),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="Score both on this text or labelled table.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Leave a part as it is: embed, head, blocks.0, down (repeatable)."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model small, and see what that costs.

    inkstone compress runs/mine --to int4 --out models/small --data texts/ --eval held-out.txt

    The new folder is a model like any other: generate, serve and eval take it.
    """
    import json as encoder

    from inkstone import api
    from inkstone.cli.progress import observer

    result = api.compress(
        run, to, out, data=data, evaluate=evaluate, keep=keep or (), observer=observer(quiet=quiet)
    )
    if json:
        print(encoder.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    print("\n".join(table(result)))


def table(result: Compressed) -> list[str]:
    """Before and after, for people."""

    def row(name: str, before: str, after: str, change: str) -> str:
        return f"{name:24} {before:>14} {after:>14} {change:>9}"

    before, after = result.before, result.after
    lines = [row("", "before", result.to, "")]
    for name, get in (("on disk", _disk), ("in memory", _memory)):
        a, b = get(before), get(after)
        lines.append(row(name, f"{a / 1e6:,.1f} MB", f"{b / 1e6:,.1f} MB", f"{b / a:.2f} x"))
    if before.speed and after.speed:
        unit = before.speed_unit
        first, second = (f"{x:,.0f} {unit}" for x in (before.speed, after.speed))
        lines.append(row("speed", first, second, f"{after.speed / before.speed:.2f} x"))
    for name, value in before.scores.items():
        other = after.scores[name]
        change = f"{other - value:+.4f}"
        lines.append(row(name.replace("_", " "), f"{value:,.4f}", f"{other:,.4f}", change))
    if not before.scores:
        lines.append("no score: give --eval with text or examples that it has not seen")
    if not result.calibrated and result.to == "int4":
        lines.append("rounded without a view to your text; --data texts/ rounds better")
    return lines


def _disk(facts: Facts) -> int:
    return facts.disk_bytes


def _memory(facts: Facts) -> int:
    return facts.memory_bytes
