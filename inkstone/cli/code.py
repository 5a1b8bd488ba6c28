"""`inkstone eval --python`: how well a model writes Python, as a table."""

from __future__ import annotations

from typing import Any

from inkstone.errors import UsageError

SHOWN = 5  # lines, wanted and written


def print_report(model: Any, data: str, *, json: bool, limit: int | None, seed: int) -> None:
    """Score, and print every share with its interval.

    Raises:
        UsageError: The model is no language model.
    """
    import json as encoder

    from inkstone.cli.text import printable

    if not hasattr(model, "score_python"):
        raise UsageError("--python is for models that continue text", fix="leave it out")
    chosen = {} if limit is None else {"limit": limit}
    report = model.score_python(data, seed=seed, **chosen)
    if json:
        print(encoder.dumps(report.to_dict(), indent=2, ensure_ascii=False))
        return
    for score in report.scores:
        print(f"{score.name:40} {score.shown:26} {score.definition}")
    print(
        f"  {report.tokens:,} tokens, {len(report.functions):,} functions, "
        f"{len(report.lines):,} lines"
    )
    for wanted, written in report.lines[:SHOWN]:
        print(f"\n  wanted   {printable(wanted)}\n  written  {printable(written)}")
