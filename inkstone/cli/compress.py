"""`inkstone compress`: a smaller model, beside what it was."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.pipeline.compress import Compressed
    from inkstone.pipeline.facts import Facts


def command(
    run: options.RunOrModel,
    out: Annotated[str, typer.Option(help="New folder for the small model.")],
    to: Annotated[
        str | None, typer.Option(help="Round the weights: int8, int4, fp8 or bf16.")
    ] = None,
    prune: Annotated[
        float | None,
        typer.Option(help="Set this share of the weights to zero, or leave out heads or layers."),
    ] = None,
    prune_by: Annotated[
        str | None,
        typer.Option(help="magnitude (default), movement, 2:4; or heads, layers: a smaller model."),
    ] = None,
    distill: Annotated[
        list[str] | None,
        typer.Option(
            help="Teach a student: its shape, model.n_layers=3 (repeatable), or its folder."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Text or examples like those it will read; to train and to round by."),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Train what was pruned, or the student, so long.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Likewise, in steps.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Of that training: training.lr=0.001, distill.temperature=4 (repeatable)."
        ),
    ] = None,
    evaluate: Annotated[
        str | None, typer.Option("--eval", help="Score both on this text or labelled table.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="Leave a part as it is: embed, head, blocks.0, down (repeatable)."),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Make a model small, and see what that costs.

    inkstone compress runs/mine --to int4 --out models/small --data texts/ --eval held-out.txt

    inkstone compress runs/mine --prune 0.5 --minutes 10 --data texts/ --out models/sparse

    inkstone compress runs/mine --distill model.n_layers=3 --minutes 10 --data texts/ --out student

    They may be combined. The new folder is a model like any other: generate, serve and eval take
    it.
    """
    import json as encoder

    from inkstone import api, pipeline
    from inkstone.cli.progress import observer
    from inkstone.errors import UsageError

    if prune_by is not None and prune is None:
        raise UsageError("--prune-by says what is pruned, but not how much", fix="add --prune 0.5")
    watcher = observer(quiet=quiet)
    try:
        result = api.compress(
            run, to, out, data=data, evaluate=evaluate, keep=keep or (), prune=prune,
            prune_by=prune_by or "magnitude",  # type: ignore[arg-type]
            distill=student(distill or []), minutes=minutes, steps=steps,
            settings=overrides(settings or []), device=device, observer=watcher,
        )  # fmt: skip
    except pipeline.TrainingInterrupted as stopped:
        watcher.training_ended()
        print(f"stopped at step {stopped.step:,}; nothing was written", file=sys.stderr)
        raise typer.Exit(128 + stopped.signum) from stopped
    except BaseException:
        watcher.training_ended()  # leave the terminal as it was
        raise
    if json:
        print(encoder.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    print("\n".join(table(result)))


def student(given: list[str]) -> dict[str, Any] | str | None:
    """What `--distill` says: a shape, or a folder.

    Raises:
        UsageError: Both, or a setting of something other than the model.
    """
    from inkstone.errors import UsageError
    from inkstone.recipe import OVERRIDE

    shapes = [text for text in given if OVERRIDE.fullmatch(text)]
    if not shapes:
        if len(given) > 1:
            raise UsageError("--distill takes one folder", fix=f"--distill {given[0]}")
        return given[0] if given else None
    wrong = next((x for x in given if x not in shapes or not x.startswith("model.")), None)
    if wrong is not None:
        raise UsageError(
            f"--distill {wrong}: no setting of the model beside {shapes[0]}",
            fix="give a shape, --distill model.n_layers=3 --distill model.d_model=128, or a folder",
        )
    return {name.removeprefix("model."): value for name, value in overrides(shapes).items()}


def overrides(given: list[str]) -> dict[str, Any]:
    """Settings as "section.key": value."""
    from inkstone.recipe import parse_override

    parsed = map(parse_override, given)
    return {f"{section}.{key}": value for section, key, value in parsed}


def table(result: Compressed) -> list[str]:
    """Before and after, for people."""

    def row(name: str, before: str, after: str, change: str = "") -> str:
        return f"{name:24} {before:>14} {after:>14} {change:>9}".rstrip()

    before, after = result.before, result.after
    lines = [row("", "before", result.to or "after")]
    for name, get in (("on disk", _disk), ("in memory", _memory)):
        a, b = get(before), get(after)
        lines.append(row(name, f"{a / 1e6:,.1f} MB", f"{b / 1e6:,.1f} MB", f"{b / a:.2f} x"))
    if before.parameters != after.parameters:
        counts = (before.parameters, after.parameters)
        first, second = (f"{n:,}" for n in counts)
        lines.append(row("weights", first, second, f"{counts[1] / counts[0]:.2f} x"))
    if result.shrunk.get("pruned"):
        lines.append(row("zeros", f"{before.zeros:.1%}", f"{after.zeros:.1%}"))
    if before.speed and after.speed:
        unit = before.speed_unit
        first, second = (f"{x:,.0f} {unit}" for x in (before.speed, after.speed))
        lines.append(row("speed", first, second, f"{after.speed / before.speed:.2f} x"))
    for name, value in before.scores.items():
        other = after.scores[name]
        change = f"{other - value:+.4f}"
        lines.append(row(name.replace("_", " "), f"{value:,.4f}", f"{other:,.4f}", change))
    return lines + notes(result)


def notes(result: Compressed) -> list[str]:
    """What was done, and what else could be."""
    from inkstone.cli.text import clock

    lines = []
    pruned, trained = result.shrunk.get("pruned"), result.shrunk.get("trained")
    if pruned and "zeros" in pruned:
        lines.append(
            f"pruned by {pruned['by']}: {pruned['zeros']:.1%} of {pruned['maps']} maps are zeros"
        )
    elif pruned:
        lines.append(f"pruned by {pruned['by']}: {pruned['left']} of {pruned['of']} left")
    if trained:
        lines.append(
            f"trained {trained['steps']:,} steps on {trained['targets']:,} {trained['unit']} of "
            f"{trained['data']} in {clock(trained['seconds'])}"
        )
    elif pruned:
        lines.append("not trained since: --data and --minutes 10 win some of the score back")
    if not result.before.scores:
        lines.append("no score: give --eval with text or examples that it has not seen")
    if not result.calibrated and result.to == "int4":
        lines.append("rounded without a view to your text; --data texts/ rounds better")
    return lines


def _disk(facts: Facts) -> int:
    return facts.disk_bytes


def _memory(facts: Facts) -> int:
    return facts.memory_bytes
