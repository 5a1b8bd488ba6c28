"""The page of a comparison: a table, and the score against each cost as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from inkstone import __version__
from inkstone.files import write_atomic
from inkstone.pipeline.compared import Comparison, Row
from inkstone.planning.plan import size_text
from inkstone.report import environment, ticks

PAGE = "comparison.html"
WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 110, 14, 40  # names stand to the right of their points
AXES = (
    ("training_s", "seconds of training"),
    ("example_s", "seconds to predict an example among many"),
    ("memory_bytes", "bytes of memory, peak"),
    ("disk_bytes", "bytes on disk"),
)


@dataclass(frozen=True)
class Point:
    """A row in a picture, in drawing units."""

    name: str
    x: float
    y: float
    low: float
    high: float
    front: bool


@dataclass(frozen=True)
class Picture:
    """Scores against one cost, on a logarithmic axis."""

    title: str
    points: Sequence[Point]
    lines: Sequence[tuple[float, str]]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def write(comparison: Comparison, out: Path) -> Path:
    """Write `comparison.html`; returns its path."""
    page = environment()
    page.filters["size"] = lambda value: "–" if value is None else size_text(value)
    pictures = [picture(comparison, field, title) for field, title in AXES]
    size = {"w": WIDTH, "h": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    text = page.get_template("report_comparison.html.jinja").render(
        name=out.resolve().name, out=str(out), c=comparison, size=size, version=__version__,
        pictures=[x for x in pictures if x is not None],
    )  # fmt: skip
    path = out / PAGE
    write_atomic(path, text)
    return path


def picture(comparison: Comparison, field: str, title: str) -> Picture | None:
    """Place the rows that have a score and this cost; None where there is none."""
    rows = [r for r in comparison.rows if r.score is not None and (getattr(r, field) or 0) > 0]
    if not rows:
        return None
    scale = comparison.scale
    others = [r for r in comparison.others if r.score is not None]
    ends = [scale * x for r in (*rows, *others) for x in (r.score, r.low, r.high) if x is not None]
    low, high = min(ends), max(ends)
    room = 0.06 * (high - low) or 1.0
    low, high = low - room, high + room
    costs = [math.log10(getattr(r, field)) for r in rows]
    first, last = math.floor(min(costs)), max(math.ceil(max(costs)), math.floor(min(costs)) + 1)

    def across(cost: float) -> float:
        share = (math.log10(cost) - first) / (last - first)
        return round(LEFT + (WIDTH - LEFT - RIGHT) * share, 1)

    def down(score: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low), 1)

    def point(row: Row) -> Point:
        score = row.score or 0.0
        low, high = (down(scale * (score if x is None else x)) for x in (row.low, row.high))
        return Point(
            row.name, across(getattr(row, field)), down(scale * score), low, high, row.front
        )

    return Picture(
        title,
        [point(row) for row in rows],
        [(down(scale * (r.score or 0.0)), r.name) for r in others],
        [(across(10.0**power), f"{10.0**power:,g}") for power in range(first, last + 1)],
        [(down(value), f"{value:g}") for value in ticks(low, high)],
    )
