"""`inkstone report`: write a run's report again."""

from __future__ import annotations

from typing import Annotated

import typer

from inkstone.cli import options


def command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    json: options.Json = False,
) -> None:
    """Write RUN/report.html again, and print its path."""
    import json as encoder
    from pathlib import Path

    from inkstone import report

    path = report.write(Path(run))
    print(encoder.dumps({"report": str(path)}) if json else path)
