"""`inkstone label`: labels from rules, people and a model, kept in a file of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from inkstone.cli import options

if TYPE_CHECKING:
    from inkstone.labelling.project import Point, Project


def command(
    data: Annotated[
        str,
        typer.Argument(metavar="DATA", help="A table of texts: .jsonl, .csv, .tsv or .parquet."),
    ],
    labels: Annotated[
        str | None, typer.Option(help="The labels there are: spam,ham. Kept in the file.")
    ] = None,
    out: Annotated[str, typer.Option(help="File of the labels; it only ever grows.")] = (
        "labels.jsonl"
    ),
    rules: Annotated[
        str | None, typer.Option(metavar="FILE", help="Let the rules of a .toml file vote.")
    ] = None,
    majority: Annotated[
        bool, typer.Option("--majority", help="Count the rules' votes instead of weighing them.")
    ] = False,
    self_train: Annotated[
        bool, typer.Option("--self-train", help="Let the model label what it is sure of.")
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Of --self-train.")] = 5,
    share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the rows that --self-train may label.")
    ] = 0.5,
    confidence: Annotated[
        float, typer.Option(min=0, max=1, help="That --self-train needs for any label.")
    ] = 0.0,
    suggest: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Name the N most useful rows to label.")
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A table of texts with labels that a person gave."),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Label on a page, on this machine only.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page; 0 takes any.")] = 0,
    refit: Annotated[int, typer.Option(min=1, help="Fit again after so many labels.")] = 5,
    export: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write texts with their labels: a new file.")
    ] = None,
    test: Annotated[
        str | None, typer.Option(help="A labelled table to score on, instead of a fifth of DATA.")
    ] = None,
    field: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    label_field: Annotated[
        str, typer.Option(help='Column of labels that DATA has already, here and there; "" none.')
    ] = "label",
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Label a table of texts, with as little work as possible.

    inkstone label mails.csv --labels spam,ham --serve

    inkstone label mails.csv --rules rules.toml --self-train --export train.jsonl

    Every label says who gave it: a person, a rule or the model. A person's is never overwritten.
    Without an option, the state of the labels is shown.
    """
    import json as encoder
    import sys

    project = open_project(data, labels, out, rules, test, field, label_field, seed)
    result: dict[str, Any] = {}
    try:
        if add is not None:
            result["added"] = project.add(add, field, label_field or "label")
        if rules is not None:
            from inkstone.labelling.rules import load_rules

            result["rules"] = project.apply_rules(load_rules(rules), count=majority)
        if self_train:
            result["self_training"] = project.self_train(
                rounds=rounds, share=share, confidence=confidence
            )
        if suggest is not None:
            result["suggestions"] = suggestions(project, suggest, field)
        if serve:
            from inkstone.labelling.server import run

            run(project, port=port, refit=refit, told=lambda line: print(line, file=sys.stderr))
        if export is not None:
            result["exported"] = project.export(export, field)
        result["labels"] = project.counts()
        result["score"] = project.score()
    finally:
        project.store.close()
    if json:
        print(encoder.dumps(plain(result), indent=2, ensure_ascii=False))
    else:
        show(result, project, quiet)


def open_project(
    data: str, labels: str | None, out: str, rules: str | None, test: str | None,
    field: str, label_field: str, seed: int,
) -> Project:  # fmt: skip
    """The table, its labels and its model.

    Labels that are not named are those of the file, or those that the table and the rules have.
    """
    from pathlib import Path

    from inkstone.labelling.project import Project
    from inkstone.labelling.rules import load_rules
    from inkstone.labelling.store import Store
    from inkstone.labelling.table import check_place, read_texts
    from inkstone.text.normalize import normalize

    check_place(Path(out), data)
    texts = read_texts(data, field, label_field or None)
    tests = [] if test is None else read_texts(test, field, label_field or "label")
    if labels is not None:
        names = [normalize(name.strip()) for name in labels.split(",")]
    elif Path(out).exists() and Path(out).stat().st_size:
        names = []
    else:
        names = sorted({text.label for text in texts if text.label})
        names += [] if rules is None else [rule.label for rule in load_rules(rules)]
    return Project(texts, Store(out, names), seed=seed, test=tests)


def suggestions(project: Project, n: int, field: str) -> list[dict[str, Any]]:
    """The most useful rows, with what the model thinks of them."""
    p = project.guess()
    rows = []
    for place in project.suggest(n, p):
        text = project.texts[place]
        row: dict[str, Any] = {field: text.text, "place": text.place, "label": None}
        if p is not None:
            row["guess"] = project.labels[int(p[place].argmax())]
            row["confidence"] = round(float(p[place].max()), 4)
        rows.append(row)
    return rows


def plain(value: Any) -> Any:
    """Ready for JSON."""
    from dataclasses import asdict, is_dataclass

    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items()}
    return value


def show(result: dict[str, Any], project: Project, quiet: bool) -> None:
    """The result for people; suggestions as JSON lines, to be filled in and given to --add."""
    import json as encoder
    import sys

    from inkstone.cli.text import printable

    for row in result.get("suggestions", []):
        print(encoder.dumps(row, ensure_ascii=False))
    lines: list[str] = []
    if "rules" in result:
        lines += [*rule_lines(result["rules"]), ""]
    if "self_training" in result:
        lines += [*taught_lines(result["self_training"]), ""]
    lines.append(f"{'label':20} {'people':>8} {'rules':>8} {'model':>8}")
    for label, by in result["labels"].items():
        numbers = " ".join(f"{by[k]:8,}" for k in ("person", "rule", "model"))
        lines.append(f"{printable(label):20.20} {numbers}")
    lines.append(f"{len(project.texts):,} texts; labels in {printable(str(project.store.path))}")
    lines.append(score_line("a model of these labels", result["score"]))
    if "exported" in result:
        lines.append(f"exported {result['exported']:,} labelled texts")
    if not quiet or "suggestions" not in result:
        file = sys.stderr if "suggestions" in result else sys.stdout
        print("\n".join(lines), file=file)


def rule_lines(found: dict[str, Any]) -> list[str]:
    """What each rule did."""
    from inkstone.cli.text import printable

    names = ("coverage", "overlap", "conflict", "accuracy")
    lines = [f"{'rule':24} {'votes for':12} " + " ".join(f"{n:>9}" for n in names) + "  measured"]
    for row in found["rules"]:
        values = ("–" if row[name] is None else f"{100 * row[name]:.2f}" for name in names)
        numbers = " ".join(f"{value:>9}" for value in values)
        seen = row["measured"]
        measured = "–" if seen is None else f"{100 * seen:.2f} of {row['measured_on']:,}"
        label, rule = printable(row["label"]), printable(row["rule"])
        lines.append(f"{rule:24.24} {label:12.12} {numbers}  {measured}")
    covered = f"{found['covered']:,} of {found['rows']:,} texts covered"
    lines.append(f"{covered}; {found['written']:,} labels written")
    if found["measured"] is not None:
        share, n = 100 * found["measured"], found["measured_on"]
        lines.append(f"together they are right on {share:.2f} % of {n:,} that people labelled")
    return lines


def taught_lines(found: dict[str, Any]) -> list[str]:
    """What self-training did."""
    taken = ", ".join(f"{n:,}" for n in found["taken"])
    limits = ", ".join(f"{name} {t:.3f}" for name, t in found["thresholds"].items())
    return [
        f"self-training took {taken} labels in its rounds; {found['written']:,} are written",
        f"lowest probability taken: {limits or '–'}",
        score_line("before", found["before"]),
        score_line("after", found["after"]),
    ]


def score_line(name: str, score: Point | None) -> str:
    """A score with its interval and what it was measured on."""
    if score is None:
        return f"{name}: no score yet (two labels to learn from, and one example to check)"
    low, high = 100 * score.low, 100 * score.high
    return (
        f"{name}: accuracy {100 * score.accuracy:.2f} ({low:.2f} to {high:.2f}) on "
        f"{score.examples:,} unseen examples, from {score.labels:,} labels"
    )
