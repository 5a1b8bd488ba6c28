"""`inkstone new`: look at data, advise what to train on it, write the recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.planning.advice import Advice
    from inkstone.planning.detect import Guess
    from inkstone.recipe import Recipe


def command(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="What is known: task.label_field=x"),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Folder or file. May be given several times.")
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, tagging, translation, …; else by the data.")
    ] = None,
    language: Annotated[
        str | None,
        typer.Option(help="en, zh, …: whether spaces part words; else by the text."),
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Time to train. Default 10.")] = None,
    output: Annotated[str | None, typer.Option(help="New recipe file; default: NAME.toml.")] = None,
    probe_seconds: Annotated[
        float, typer.Option(min=0.0, help="Time for quick fits, from which scores are foretold.")
    ] = 20.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing.")] = False,
    cache: options.Cache = None,
    device: options.Device = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Look at your data, advise what to train, and write the recipe.

    inkstone new --data reviews/ --minutes 5

    Asks for what is not given, where somebody sits at a terminal. Scores are foretold from quick
    fits to growing parts of the data; what cannot be foretold is said to be unknown.
    """
    import json as encoder

    from inkstone import recipe as recipes
    from inkstone.cli.progress import observer
    from inkstone.errors import UsageError
    from inkstone.pipeline import advising
    from inkstone.pipeline.stages import StageCache, cache_folder

    asks = sys.stdin.isatty() and not yes and not json
    if not data and asks:
        data = [_ask("Data (a folder or a file)", None)]
    if not data:
        raise UsageError("no data is given", fix="inkstone new --data FOLDER")
    given = task_settings(words or [])
    base = recipes.load(None, [w for w in words or [] if not w.startswith("task.")])
    base = base.with_data(data)
    guess = advising.guess(base, task, given)
    if asks:
        guess = _confirmed(base, guess, given)
        minutes = minutes or _ask("Minutes to train", 10.0)
    minutes = minutes or base.training.minutes or 10.0
    recipe = base.with_values(
        {"task": {"name": guess.task, **guess.settings}, "training": {"minutes": float(minutes)}}
    )
    watcher = observer(quiet=quiet)
    stages = StageCache(cache_folder(Path(cache) if cache else None), watcher)
    try:
        advice = advising.advise(
            recipe, family=base.to_dict(only_given=True).get("model", {}).get("family"),
            language=language, seconds=probe_seconds, cache=stages, device=device,
        )  # fmt: skip
    finally:
        watcher.training_ended()
    if not json:
        show(advice, guess)
    usable = [x.family for x in advice.candidates if not x.problem]
    if not usable:
        problems = "; ".join(f"{x.family}: {x.problem}" for x in advice.candidates)
        raise UsageError(f"no family can be used here: {problems}")
    family = _ask("Family", advice.chosen) if asks else advice.chosen
    while family not in usable:
        family = _ask(f"One of {', '.join(usable)}", advice.chosen)
    path, text = write(recipe, advice, guess, family, data, output)
    command = shlex.join(["inkstone", "train", str(path), "--run", f"runs/{path.stem}"])
    if json:
        result = {**advice.to_dict(), "settings": guess.settings, "recipe": str(path),
                  "toml": text, "command": command}  # fmt: skip
        print(encoder.dumps(result, indent=2, ensure_ascii=False))
        return
    print(f"\nrecipe  {path}\nnext\n  {command}")
    if guess.task != "language_modeling":
        print(f"  inkstone compare {shlex.quote(data[0])} --minutes {minutes:g}")


# --- asking --------------------------------------------------------------------------------------


def _ask(question: str, default: Any) -> Any:
    """An answer of the default's type."""
    kind = type(default) if default is not None else str
    return typer.prompt(question, default=default, type=kind, err=True)


def task_settings(words: list[str]) -> dict[str, Any]:
    """The settings of [task] among some of SECTION.KEY=VALUE."""
    from inkstone.recipe import parse_override

    parsed = [parse_override(word) for word in words]
    return {key: value for section, key, value in parsed if section == "task" and key != "name"}


def _confirmed(recipe: Recipe, guess: Guess, given: dict[str, Any]) -> Guess:
    """The task and its fields, as whoever sits here sees them."""
    from dataclasses import replace

    from inkstone.pipeline import advising

    task = _ask(f"Task ({guess.reason})", guess.task)
    if task != guess.task:
        guess = advising.guess(recipe, task, given)
    settings = dict(guess.settings)
    for setting, others in guess.others.items():
        name = setting.removesuffix("_field")
        settings[setting] = _ask(f"Field of the {name} (or {', '.join(others)})", settings[setting])
    return replace(guess, settings=settings)


# --- telling -------------------------------------------------------------------------------------


def show(advice: Advice, guess: Guess) -> None:
    """Facts, warnings, the table of candidates and the reasons, for people."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from inkstone.cli.text import clock, printable
    from inkstone.planning.advice import shown
    from inkstone.planning.plan import size_text

    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("task", "bold"), Text(f"{guess.task}: {printable(guess.reason)}"))
    for name, line in advice.facts:
        grid.add_row(Text(name, "bold"), Text(printable(line), overflow="fold"))
    for line in advice.warnings:
        grid.add_row(Text("look", "bold yellow"), Text(printable(line), overflow="fold"))
    console.print(grid)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("", "family", "size", "time", "memory", "held-out score to expect"):
        table.add_column(name, justify="right" if name in ("time", "memory") else "left")
    for x in advice.candidates:
        best = x.family == advice.chosen
        table.add_row(
            "→" if best else "", Text(x.family, "bold" if best else ""), x.size,
            "–" if x.training_s is None else clock(x.training_s),
            "–" if x.memory_bytes is None else size_text(x.memory_bytes),
            shown(x.expected) if x.expected else "not known",
        )  # fmt: skip
    console.print(table)
    rows = Table.grid(padding=(0, 2))
    for number, line in enumerate(advice.reasons):
        name = "" if number else f"why {advice.chosen}"
        rows.add_row(Text(name, "bold"), Text(printable(line)))
    for name, line in advice.against.items():
        rows.add_row(Text(f"why not {name}"), Text(printable(line)))
    console.print(rows)


def write(
    recipe: Recipe, advice: Advice, guess: Guess, family: str, data: list[str], output: str | None
) -> tuple[Path, str]:
    """The recipe as a new file: only what is decided; the rest is planned when it is trained.

    Raises:
        UsageError: The file is there, or cannot be written.
    """
    from inkstone.cli.session import default_run
    from inkstone.files import write_new

    path = Path(output) if output else _free(Path(f"{default_run(recipe, None).name}.toml"))
    text = recipe_text(recipe, advice, guess, family, data, path)
    write_new(path, text, "--output")
    return path, text


def recipe_text(
    recipe: Recipe, advice: Advice, guess: Guess, family: str, data: list[str], path: Path
) -> str:
    """TOML with a comment for each decision."""
    from inkstone.cli.text import printable
    from inkstone.inference.predict import FITTED
    from inkstone.recipe import from_dict

    candidate = advice.candidate(family)
    settings = candidate.settings
    root = path.absolute().parent
    paths = [Path(p).absolute() for p in data]
    values = recipe.to_dict(only_given=True)
    values["task"] = {**advice.settings, **values["task"]}
    given = values.get("model", {}) if recipe.model.family == family else {}
    values["model"] = {**settings, **given, "family": family}
    values["data"]["path"] = [str(_from(root, p)) for p in paths]
    if candidate.kind in FITTED:
        del values["training"]["minutes"]  # fitted at once, for as long as it takes
    chosen = from_dict({section: held for section, held in values.items() if held})
    reasons = advice.reasons if family == advice.chosen else ["chosen by hand"]
    notes = {
        "task.name": guess.reason, "model.family": "; ".join(reasons),
        "training.minutes": "at most; it may end before",
        **({f"model.{next(iter(settings))}": candidate.why} if settings else {}),
    }  # fmt: skip
    lines = [f"# {guess.task} of {', '.join(p.name for p in paths)}, written by `inkstone new`"]
    lines += [f"#   inkstone train {path} --run runs/{path.stem}", "#"]
    lines += [f"# {name}: {line}" for name, line in advice.facts]
    lines += [f"# look: {line}" for line in advice.warnings]
    head = "\n".join(printable(" ".join(line.split())) for line in lines)
    return f"{head}\n\n{chosen.to_toml(notes, only_given=True)}"


def _from(root: Path, path: Path) -> Path:
    """Relative where the recipe's folder holds it; a recipe may not climb out of its folder."""
    return path.relative_to(root) if path.is_relative_to(root) and path != root else path


def _free(wanted: Path) -> Path:
    candidate, number = wanted, 1
    while candidate.exists():
        number += 1
        candidate = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
    return candidate
