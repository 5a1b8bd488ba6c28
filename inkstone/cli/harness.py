"""`inkstone eval --harness`: tasks of lm-evaluation-harness, as a table."""

from __future__ import annotations

from typing import Any

from inkstone.errors import UsageError


def print_scores(model: Any, tasks: str, *, json: bool, shots: str | None, **settings: Any) -> None:
    """Ask, and print every score of every task.

    Raises:
        UsageError: `shots` is no number.
    """
    import json as encoder

    from inkstone.cli.text import printable
    from inkstone.evaluation.harness import evaluate

    if shots is not None and not shots.isdecimal():
        raise UsageError(f"--shots {shots!r} is no number", fix="with --harness, such as 5")
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--harness names no task", fix="such as hellaswag,arc_easy")
    found = evaluate(model, names, shots=None if shots is None else int(shots), **settings)
    if json:
        print(encoder.dumps([score.to_dict() for score in found], indent=2, ensure_ascii=False))
        return
    print(f"{'task':24} {'metric':18} {'filter':12} {'value':>12} {'± stderr':>10} {'asked':>7}")
    for score in found:
        spread = "–" if score.stderr is None else f"{score.stderr:.4f}"
        task, metric, kind = (printable(x) for x in (score.task, score.metric, score.filter))
        print(
            f"{task:24} {metric:18} {kind:12} {score.value:12,.4f} {spread:>10} {score.examples:7,}"
        )
