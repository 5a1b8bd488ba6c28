"""One self-contained HTML page about a run, and its loss curve as a picture.

The page is written from the files of the run folder alone, so that it can be written again at any
time. It loads nothing from anywhere; every string in it is escaped by Jinja.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from inkstone import __version__
from inkstone.errors import RunError
from inkstone.files import complete_lines, write_atomic

LANGUAGE_MODEL, EXAMPLES = "report.html.jinja", "report_examples.html.jinja"
PRETRAINING = "report_pretraining.html.jinja"
WIDTH, HEIGHT = 760, 320  # of the curve's drawing
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 34  # its margins
MAX_POINTS = 400  # of one line; more cannot be seen

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """What an SVG needs: paths and ticks in drawing units."""

    train: str
    valid: Sequence[tuple[float, float]]
    valid_line: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def write(run: Path) -> Path:
    """Write `report.html` and `loss.png` of a run; returns the page's path.

    Raises:
        RunError: The folder holds no run.
    """
    facts = gather(run)
    plain = PRETRAINING if facts["objective"] else LANGUAGE_MODEL
    template = environment().get_template(EXAMPLES if facts["task"] else plain)
    size = {"w": WIDTH, "h": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    page = template.render(**facts, size=size, version=__version__)
    path = run / "report.html"
    write_atomic(path, page)
    points = facts["train_points"], facts["valid_points"]
    picture(*points, run / "loss.png", run.name, f"loss (nats per {facts['unit']})")
    return path


def environment() -> jinja2.Environment:
    """Where the templates of reports are, with their filters; it escapes everything."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["number"] = number
    found.filters["clock"] = clock
    return found


def gather(run: Path) -> dict[str, Any]:
    """Everything that the page shows, from the files of the run folder."""
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise RunError(
            f"{run} holds no run (recipe.toml is missing)",
            fix="give the folder that `inkstone train --run` wrote",
        )
    if _json(run / "result.json").get("kind") == "vectors":
        raise RunError(
            f"{run} holds word vectors, which have no report",
            fix=f"look at {run}/result.json, or ask them: inkstone vectors {run} WORD",
        )
    rows = _log(run / "log.jsonl")
    train = [(r["step"], r["loss"]) for r in rows if r.get("kind") == "step" and _finite(r, "loss")]
    valid = [
        (r["step"], r["nats_per_token"])
        for r in rows
        if r.get("kind") == "eval" and _finite(r, "nats_per_token")
    ]
    steps = [r for r in rows if r.get("kind") == "step"]
    plan = _json(run / "plan.json")
    data = _json(run / "data.json")
    return {
        "name": run.resolve().name,
        "task": data.get("task"),
        "objective": data.get("objective"),
        "unit": data.get("unit", "token"),
        "run": str(run),
        "recipe": recipe.read_text(encoding="utf-8"),
        "result": _json(run / "result.json"),
        "statistics": data.get("line", ""),
        "choices": plan.get("choices", []),
        "machine": plan.get("machine", {}),
        "last": steps[-1] if steps else {},
        "train_points": train,
        "valid_points": valid,
        "curve": curve(train, valid),
    }


def curve(train: Points, valid: Points) -> Curve | None:
    """Scale both lines into the drawing; None when there is nothing to draw."""
    if not train:
        return None
    train = thin(train)
    last = max(x for x, _ in [*train, *valid])
    values = sorted(y for _, y in [*train, *valid])
    low = values[0]
    high = values[min(len(values) - 1, round(0.99 * len(values)))]  # a spike must not flatten all
    span = max(high - low, 0.01)
    low, high = max(0.0, low - 0.05 * span), high + 0.02 * span

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / max(1.0, last)
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - min(y, high)) / (high - low)
        return round(across, 1), round(down, 1)

    dots = [place(x, y) for x, y in valid]
    return Curve(
        train=_path([place(x, y) for x, y in train]),
        valid=dots,
        valid_line=_path(dots),
        x_ticks=[(place(x, low)[0], f"{x:,.0f}") for x in ticks(0, max(1.0, last)) if x == int(x)],
        y_ticks=[(place(0, y)[1], f"{y:g}") for y in ticks(low, high)],
    )


def thin(points: Points) -> Points:
    """At most MAX_POINTS points: means of runs of neighbours."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers from `low` to `high`, which is larger."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(s for s in (power * m for m in (0.2, 0.25, 0.5, 1, 2)) if (high - low) / s <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def picture(train: Points, valid: Points, path: Path, title: str, unit: str) -> None:
    """The loss curve as a PNG."""
    if not train:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(*zip(*thin(train), strict=True), color="#8a8f98", linewidth=1, label="training")
    if valid:
        axes.plot(*zip(*valid, strict=True), color="#1f5fbf", marker="o", markersize=3,
                  label="held out")  # fmt: skip
    axes.set_xlabel("step")
    axes.set_ylabel(unit)
    axes.set_title(title.replace("$", r"\$"))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png")
    temporary.replace(path)


def number(value: float | None, digits: int = 3) -> str:
    """A number with thousands separators, or a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"
    return f"{value:,.{digits}f}"


def clock(seconds: float | None) -> str:
    """Seconds as m:ss or h:mm:ss."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))


def _finite(row: dict[str, Any], key: str) -> bool:
    value = row.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


def _log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in complete_lines(path)]
    except ValueError as error:
        raise RunError(
            f"{path} is damaged: {error}", fix="delete it; the model is intact"
        ) from error


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
    return value if isinstance(value, dict) else {}
