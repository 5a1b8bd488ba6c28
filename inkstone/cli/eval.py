"""`inkstone eval`: how well a model does on data it has not seen."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inkstone.cli import options


def command(
    run: options.RunOrModel,
    data: Annotated[
        str | None,
        typer.Option(
            help="Text or a table of labelled examples (- is stdin); "
            "for word vectors a file of analogies or of word pairs with scores."
        ),
    ] = None,
    harness: Annotated[
        str | None,
        typer.Option(help="Tasks of lm-evaluation-harness instead: hellaswag,arc_easy."),
    ] = None,
    tasks_dir: Annotated[
        str | None,
        typer.Option(help="Folder of tasks of your own for --harness; code that it names runs."),
    ] = None,
    python: Annotated[
        bool,
        typer.Option(
            "--python", help="How well it writes the Python in --data: tokens, lines, functions."
        ),
    ] = False,
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Score this many new tokens a window; the rest is context."),
    ] = None,
    shots: Annotated[
        str | None,
        typer.Option(help="Ask in context, with so many solved examples before each: 0,1,8."),
    ] = None,
    demonstrations: Annotated[
        str | None, typer.Option(help="Where --shots draws its solved examples from.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help='The prompt of --shots: "{text}\\nTopic:"')
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="Names of the labels for --shots, by number: ham,spam")
    ] = None,
    by: Annotated[
        str, typer.Option(help="What decides between options: tokens, sum or answer.")
    ] = "tokens",
    shared: Annotated[
        bool, typer.Option(help="The same solved examples before every question; faster.")
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Ask so many questions (or lines and functions) at most."),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of what --shots, --python and --limit draw.")
    ] = 0,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Measure a model on data that it has not seen.

    Perplexity and bits per byte of a text, the scores of a task on labelled examples, or what word
    vectors know of analogies and similarities. With --shots, how well a language model answers
    questions that it was never trained on, with solved examples in its prompt:

    inkstone eval runs/gpt --data sms-spam/ --shots 0,1,8 --labels ham,spam

    The rule that they were computed by is printed with them.
    """
    import json as encoder

    from inkstone import api
    from inkstone.cli.session import score_lines
    from inkstone.errors import UsageError
    from inkstone.vectors.table import Vectors

    if (data is None) == (harness is None):
        raise UsageError("give either --data or --harness", fix="such as --data held-out.txt")
    model = api.load(run, device=device)
    if harness is not None:
        from inkstone.cli.harness import print_scores

        print_scores(model, harness, json=json, shots=shots, tasks_dir=tasks_dir, limit=limit)
        return
    assert data is not None
    if isinstance(model, Vectors):
        from inkstone.cli.vectors import print_test
        from inkstone.evaluation.vectors import evaluate

        print_test(evaluate(model, data), json=json)
        return
    if python:
        from inkstone.cli.code import print_report

        print_report(model, data, json=json, limit=limit, seed=seed)
        return
    if shots is not None:
        from inkstone.cli.few_shot import print_reports

        names = tuple(name.strip() for name in labels.split(",")) if labels else ()
        print_reports(
            model, data, shots, json=json, demonstrations=demonstrations, labels=names, by=by,
            template=template, shared=shared, limit=limit, seed=seed,
        )  # fmt: skip
        return
    if model.predictor is not None:
        if stride is not None:
            raise UsageError("--stride is for scoring plain text", fix="leave it out")
        result = model.evaluate(data)
        if json:
            print(encoder.dumps(result, indent=2, ensure_ascii=False))
            return
        print("\n".join([*score_lines(result), *label_lines(result["labels"])]))
        return
    if model.objective is not None:
        result = model.evaluate(data)
        if json:
            print(encoder.dumps(result, indent=2))
            return
        for name, value in result.items():
            shown = f"{value:,.4f}" if isinstance(value, float) else value
            print(f"{name.replace('_', ' '):24} {shown}")
        return
    report = model.perplexity(data, stride=stride)
    if json:
        print(encoder.dumps(report.to_dict(), indent=2))
        return
    print(f"perplexity     {report.perplexity:,.3f} per token")
    print(f"bits per byte  {report.bits_per_byte:.4f}")
    print(f"tokens         {report.tokens:,} ({report.bytes:,} bytes)")
    print(f"rule           {report.rule}")


def label_lines(labels: list[dict[str, Any]]) -> list[str]:
    """Precision, recall and F1 of every label, for people."""
    from inkstone.cli.text import printable

    if not labels:
        return []
    lines = ["", f"{'label':20} {'precision':>9} {'recall':>9} {'F1':>9} {'examples':>9}"]
    for row in labels:
        numbers = " ".join(f"{100 * row[k]:9.2f}" for k in ("precision", "recall", "f1"))
        lines.append(f"{printable(row['label']):20.20} {numbers} {row['examples']:9,}")
    return lines
