"""`inkstone eval`: how well a model predicts a text it has not seen, or knows words."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    run: options.RunOrModel,
    data: Annotated[
        str,
        typer.Option(
            help="Folder, file or glob of text; - is stdin. "
            "For word vectors a file of analogies, or of word pairs with scores."
        ),
    ],
    stride: Annotated[
        int | None,
        typer.Option(min=1, help="Score this many new tokens a window; the rest is context."),
    ] = None,
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Measure perplexity and bits per byte of a whole text, or the quality of word vectors.

    The rule that they were computed by is printed with them.
    """
    import json as encoder

    from inkstone import api
    from inkstone.vectors.table import Vectors

    model = api.load(run, device=device)
    if isinstance(model, Vectors):
        from inkstone.cli.vectors import print_test
        from inkstone.evaluation.vectors import evaluate

        print_test(evaluate(model, data), json=json)
        return
    report = model.perplexity(data, stride=stride)
    if json:
        print(encoder.dumps(report.to_dict(), indent=2))
        return
    print(f"perplexity     {report.perplexity:,.3f} per token")
    print(f"bits per byte  {report.bits_per_byte:.4f}")
    print(f"tokens         {report.tokens:,} ({report.bytes:,} bytes)")
    print(f"rule           {report.rule}")
