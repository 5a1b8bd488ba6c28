"""`inkstone eval --shots`: answers in context, as a table."""

from __future__ import annotations

import sys
from typing import Any

from inkstone.errors import UsageError


def print_reports(
    model: Any, data: str, shots: str, *, json: bool, template: str | None, **settings: Any
) -> None:
    """Ask, and print accuracy beside chance for each number of solved examples.

    Raises:
        UsageError: `shots` is no list of numbers.
    """
    import json as encoder

    from inkstone.cli.text import printable

    try:
        wanted = [int(part) for part in shots.split(",")]
    except ValueError as error:
        raise UsageError(f"--shots {shots!r} is no list of numbers", fix="such as 0,1,8") from error
    if template is not None:
        template = template.replace("\\n", "\n")  # as a shell leaves it
    reports = model.few_shot(data, shots=wanted, template=template, **settings)
    if json:
        print(encoder.dumps([r.to_dict() for r in reports], indent=2, ensure_ascii=False))
        return
    print(f"{'shots':>5} {'accuracy':>9}   {'95 % interval':16} {'chance':>7} {'majority':>9}")
    for report in reports:
        score = report.accuracy
        low, high = 100 * score.low, 100 * score.high
        chance = "–" if report.chance is None else f"{100 * report.chance:.2f}"
        print(
            f"{report.shots:5} {100 * score.value:9.2f}   {f'{low:.2f} to {high:.2f}':16} "
            f"{chance:>7} {100 * report.majority:9.2f}"
        )
    first = reports[0]
    print(f"  {first.examples:,} questions; {printable(first.rule)}")
    for report in reports:
        if report.shown < report.shots:
            print(
                f"{report.shots} shots: {report.shown:.1f} of them fit the context on average",
                file=sys.stderr,
            )
        if report.cut:
            print(f"{report.cut:,} questions were cut at the front", file=sys.stderr)
            break
