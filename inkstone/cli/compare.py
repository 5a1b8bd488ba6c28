"""`inkstone compare`: several families on one task, and what each gives for its cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.pipeline.compared import Comparison, Row


def command(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DATA [FAMILY]... [SECTION.KEY=VALUE]...",
            help="Folder or file; then families and settings that hold for all.",
        ),
    ],
    task: Annotated[
        str | None, typer.Option(help="classification, tagging, translation, …; else by the data.")
    ] = None,
    families: Annotated[
        list[str] | None, typer.Option(help="Families to train: bag_of_words lstm bert.")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Time to train, for each.")] = 2.0,
    out: Annotated[
        str | None, typer.Option(help="Folder of the runs; the same folder goes on. runs/NAME.")
    ] = None,
    cache: options.Cache = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Train several families on one task and compare them.

    inkstone compare reviews/ --families bag_of_words lstm bert --minutes 2 --out runs/compared

    Each is a run of its own in OUT/FAMILY; baselines are always among them. The same command goes
    on with a comparison that was cut off, and with more families it adds them.
    """
    import json as encoder

    from inkstone import recipe as recipes
    from inkstone.cli.new import task_settings
    from inkstone.cli.progress import observer
    from inkstone.cli.train import SETTING
    from inkstone.pipeline import advising, compare_report
    from inkstone.pipeline.compare import compare
    from inkstone.pipeline.stages import cache_folder
    from inkstone.planning.advice import SHORTLIST

    data, *more = words
    settings = [word for word in more if SETTING.match(word)]
    named = [name for text in families or [] for name in text.split(",") if name]
    named += [word for word in more if not SETTING.match(word)]
    base = recipes.load(None, [w for w in settings if not w.startswith("task.")])
    base = base.with_data([data], minutes)
    guess = advising.guess(base, task, task_settings(settings))
    recipe = base.with_values({"task": {"name": guess.task, **guess.settings}})
    default = recipe.model.family
    folder = Path(out or f"runs/{Path(data).name.split('.')[0]}-compared")
    watcher = observer(quiet=quiet)
    watcher.stage_done("task", f"{guess.task}: {guess.reason}", 0.0)
    try:
        found = compare(
            recipe, named or SHORTLIST.get(guess.task, (default,)), folder,
            cache=cache_folder(Path(cache) if cache else None), device=device, observer=watcher,
            quiet=quiet,
        )  # fmt: skip
    except KeyboardInterrupt:
        watcher.note(f"stopped; what is done is kept in {folder}, the same command goes on")
        raise
    finally:
        watcher.training_ended()
    page = compare_report.write(found, folder)
    if json:
        print(encoder.dumps({**found.to_dict(), "report": str(page)}, indent=2, ensure_ascii=False))
        return
    show(found)
    print(f"report  {page}")


def show(found: Comparison) -> None:
    """The table, for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from inkstone.cli.text import clock, printable
    from inkstone.planning.plan import size_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 0, 0, 1))
    table.add_column("")
    table.add_column("family", no_wrap=True)
    metric = found.metric.replace("_", " ")
    for name in (metric, "95 %", "train", "ms", "alone", "memory", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in found.rows:
        if row.problem:
            table.add_row("", row.name, Text(row.problem))
            continue
        table.add_row(
            "*" if row.front else "", Text(row.name), *_score(found, row),
            clock(row.training_s or 0.0), _milliseconds(row.example_s), _milliseconds(row.single_s),
            size_text(row.memory_bytes) if row.memory_bytes else "–",
            size_text(row.disk_bytes) if row.disk_bytes else "–",
        )  # fmt: skip
    for row in found.others:
        table.add_row("", Text(printable(row.name)), *_score(found, row))
    console = Console(highlight=False)
    console.print(table)
    part = {"test": "test", "valid": "held-out", "train": "training"}[found.part]
    console.print(Text(printable(f"{metric}: {found.definition}, on the {part} examples")))
    console.print(Text("ms: to predict one of many; alone: one that comes by itself"))
    console.print(Text("* on the Pareto front: none is as good in all columns and better in one"))


def _score(found: Comparison, row: Row) -> tuple[str, str]:
    """A score and its interval."""
    score, low, high = (
        None if x is None else f"{found.scale * x:.2f}" for x in (row.score, row.low, row.high)
    )
    return score or "–", f"{low}–{high}" if low and high else "–"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g}"
