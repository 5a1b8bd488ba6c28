"""What `train` and `demo` share: start or continue a run, watch it, tell how it ended."""

from __future__ import annotations

import json as encoder
import math
import sys
from pathlib import Path
from typing import Any

import typer

from inkstone.cli.text import clock, printable

TALKING = ("dialogue", "instructions", "preferences")  # tasks whose models answer
SAMPLE_CHARACTERS = 600  # of each sample on the terminal; the report holds all of it


def run_training(
    recipe: str | None,
    settings: list[str],
    *,
    data: list[str] | None,
    minutes: float | None,
    run: str | None,
    resume: str | None,
    cache: str | None,
    device: str,
    json: bool,
    quiet: bool,
) -> None:
    """Run the pipeline and print its result on stdout.

    Raises:
        typer.Exit: With 128 + signal when a signal ended training after a durable checkpoint.
        InkstoneError: The run could not start or go on.
    """
    from inkstone.training.lock import check_free

    if resume or run:
        check_free(Path(str(resume or run)))  # before torch is imported: an answer at once
    from inkstone import pipeline
    from inkstone import recipe as recipes
    from inkstone.cli.progress import observer

    watcher = observer(quiet=quiet)
    folder = Path(resume or run or ".")
    where = Path(cache) if cache else None
    try:
        if resume is not None:
            result = pipeline.resume(folder, cache=where, observer=watcher, device=device)
        else:
            loaded = recipes.load(recipe, settings).with_data(data or (), minutes)
            folder = Path(run) if run else free_name(default_run(loaded, recipe))
            result = pipeline.train(loaded, folder, cache=where, observer=watcher, device=device)
    except pipeline.TrainingInterrupted as stopped:
        watcher.training_ended()
        print(f"stopped at step {stopped.step:,}; everything is saved. To go on:", file=sys.stderr)
        print(f"  inkstone train --resume {folder}", file=sys.stderr)
        raise typer.Exit(128 + stopped.signum) from stopped
    except BaseException:
        watcher.training_ended()  # leave the terminal as it was
        raise
    print(encoder.dumps(result, indent=2) if json else summary(result))


def default_run(recipe: Any, name: str | None) -> Path:
    """runs/NAME after the recipe or the data, when no folder was given."""
    paths = recipe.data.path
    stem = name or (paths[0] if paths and paths[0] != "-" else "run")
    return Path("runs") / (Path(stem).name.split(".")[0].strip("*?[] ") or "run")


def free_name(wanted: str | Path) -> Path:
    """`wanted`, or `wanted`-2, -3 … if that name is taken. Nothing is ever overwritten."""
    wanted = Path(wanted)
    candidate, number = wanted, 1
    while candidate.exists() and not _empty_folder(candidate):
        number += 1
        candidate = wanted.with_name(f"{wanted.name}-{number}")
    if candidate != wanted:
        print(f"{wanted} already holds a run; this one goes to {candidate}", file=sys.stderr)
    return candidate


def _empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def summary(result: dict[str, Any]) -> str:
    """The end of a run, for people: scores beside baselines, samples, files, what to type next."""
    if "task" in result:
        return summary_of_examples(result)
    if result.get("kind") == "vectors":
        from inkstone.cli.vectors import summary as vectors_summary

        return vectors_summary(result)
    if result.get("kind") == "pretraining":
        return summary_of_pretraining(result)
    run = result["run"]
    lines = ["", f"{'held-out text':34} {'bits/byte':>9}  {'perplexity':>10}"]
    for row in result["scores"]["table"]:
        lines.append(
            f"  {row['name']:32} {_number(row['bits_per_byte'], 3):>9}  "
            f"{_number(row.get('perplexity'), 1):>10}"
        )
    lines.append(f"  {result['scores']['rule']}")
    for sample in result["samples"]:
        text = printable(sample["text"])
        if len(text) > SAMPLE_CHARACTERS:
            text = text[:SAMPLE_CHARACTERS] + " …"
        lines += ["", f"» {printable(sample['prompt'])}\x00{text}".replace("\x00", " ‖ ")]
    time = result["time"]
    files = [
        f"model   {run}/model        a Hugging Face folder",
        f"report  {run}/report.html",
        "",
    ]
    if result.get("kind") == "ngram":
        counted = (
            f"{result['parameters']:,} n-grams of {result['tokens']:,} tokens, "
            f"counted in {clock(time['training_s'])}, in all {clock(time['total_s'])}"
        )
        files[0] = f"model   {run}/model"
        return "\n".join([*lines, "", counted, *files[:-1]])
    lines += [
        "",
        f"{result['parameters']:,} parameters, {result['steps']:,} steps, "
        f"{result['tokens']:,} tokens; trained {clock(time['training_s'])} "
        f"(planned {clock(time['planned_training_s'])}), in all {clock(time['total_s'])}",
        *files,
        "next",
        f"  inkstone chat {run}",
        f"  inkstone serve {run}",
        f'  inkstone generate {run} "{_prompt(result)}"',
        "  inkstone train --data YOUR_FOLDER --minutes 10 --run runs/mine",
    ]
    return "\n".join(lines)


def summary_of_pretraining(result: dict[str, Any]) -> str:
    """The end of a run by an objective of encoders or encoder-decoders."""
    run, time, unit = result["run"], result["time"], result["unit"]
    table = result["scores"]["table"]
    lines = ["", f"{'held-out text':34} {'accuracy':>9}  {'perplexity':>10}"]
    for row in table:
        lines.append(f"  {row['name']:32} {row['accuracy']:>9.1%}  {row['perplexity']:>10,.2f}")
    for name in (n for n in (table or [{}])[0] if n.endswith("_accuracy")):
        lines.append(f"  {name.replace('_', ' '):32} {table[0][name]:>9.1%}")
    lines.append(f"  {result['scores']['rule']}")
    for sample in result["samples"]:
        lines += ["", f"» {printable(sample['prompt'])}", f"  {printable(sample['text'])}"]
    marks = {"masked_language_modeling": "[MASK]", "span_corruption": "<extra_id_0>"}
    mark = marks.get(result["objective"], "<mask>")
    lines += [
        "",
        f"{result['family']}, {result['parameters']:,} parameters, {result['steps']:,} steps, "
        f"{result['tokens']:,} {unit}s; trained {clock(time['training_s'])} "
        f"(planned {clock(time['planned_training_s'])}), in all {clock(time['total_s'])}",
        f"model   {run}/model        a Hugging Face folder",
        f"report  {run}/report.html",
        "",
        "next",
        f'  inkstone run {run} "This is a {mark} text."',
        f"  inkstone train RECIPE --data LABELLED model.pretrained={run}",
    ]
    return "\n".join(lines)


def summary_of_examples(result: dict[str, Any]) -> str:
    """The end of a run on labelled examples."""
    run, time = result["run"], result["time"]
    lines = ["", *score_lines(result), ""]
    for row in result.get("remembered", []):
        name = f"{', '.join(row['files'])}, {row['name']}"
        lines.append(
            f"  {printable(name):32} {row['perplexity']:9.2f}   perplexity, "
            f"{row['bits_per_byte']:.3f} bits per byte"
        )
    lines += [""] * bool(result.get("remembered"))
    for sample in result.get("samples", []):
        lines += [f"» {printable(sample['prompt'])}", printable(sample["text"]), ""]
    size = f"{result['parameters']:,} parameters, " if result["parameters"] else ""
    steps = f"{result['steps']:,} steps, " if result["steps"] else ""
    lines += [
        f"{result['family']}, {size}{steps}trained {clock(time['training_s'])}, "
        f"in all {clock(time['total_s'])}",
        f"model   {run}/model",
        *([f"adapter {result['adapter']}        for peft"] if result.get("adapter") else []),
        f"report  {run}/report.html        scores by label, the worst mistakes",
        "",
        "next",
        *_use(run, result["task"]),
        f"  inkstone eval {run} --data OTHER.jsonl",
    ]
    return "\n".join(lines)


def _use(run: str, task: str) -> list[str]:
    """Commands that use a finished task."""
    if task in TALKING:
        return [f"  inkstone chat {run}"]
    if task == "similarity":
        return [f'  inkstone search {run} FOLDER "…"']
    more = f"  inkstone run {run} --input FILE.jsonl --output PREDICTED.jsonl"
    return [f'  inkstone run {run} "…"', more]


def score_lines(result: dict[str, Any]) -> list[str]:
    """Scores with their intervals beside the simplest answer."""
    from inkstone.evaluation.scores import Score

    part = {"test": "test", "valid": "held-out", "train": "training"}.get(
        result.get("part", ""), ""
    )
    simplest = result.get("baseline") or {}
    head = f"{result['examples']:,} {part} examples".replace("  ", " ")
    lines = [
        f"{head:34} {'score':>9}   {'95 % interval':16}  {printable(simplest.get('name', ''))}"
    ]
    for row in result["scores"]:
        scale = Score(**row).scale
        value, low, high = (scale * row[key] for key in ("value", "low", "high"))
        other = simplest.get(row["name"])
        lines.append(
            f"  {row['name'].replace('_', ' '):32} {value:9.2f}   "
            f"{f'{low:.2f} to {high:.2f}':16}  {'' if other is None else f'{scale * other:.2f}'}"
        )
    return lines + [
        f"  {row['name'].replace('_', ' ')}: {row['definition']}" for row in result["scores"]
    ]


def _prompt(result: dict[str, Any]) -> str:
    prompt = next((s["prompt"] for s in result["samples"]), "Once upon a time")
    words = printable(prompt).replace('"', "").replace("$", "").replace("`", "").split()
    return " ".join(words[:4]).replace("\\", "") or "Once upon a time"


def _number(value: float | None, digits: int) -> str:
    return f"{value:,.{digits}f}" if value is not None and math.isfinite(value) else "–"
