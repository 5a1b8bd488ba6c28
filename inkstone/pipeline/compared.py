"""What families gave for their cost: rows from the run folders, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inkstone.errors import RunError
from inkstone.evaluation.scores import Score
from inkstone.pipeline import folder
from inkstone.pipeline.examples_data import PARTS
from inkstone.planning.constants import DEFAULT_MINUTES
from inkstone.planning.pareto import dominated_by
from inkstone.recipe import Recipe

LOWER_IS_BETTER = frozenset({"bits_per_byte", "perplexity"})


@dataclass(frozen=True)
class Row:
    """One family in the comparison.

    Attributes:
        name: As it was asked for; of what needs no training, what it does.
        score: The score to quote; None where the run has none.
        low: Lower end of its 95 % interval; None where there is none.
        high: Upper end.
        training_s: Time that training took.
        example_s: Time to predict one of many examples.
        single_s: Time to predict an example that comes alone.
        memory_bytes: Peak of the process that trained, scored and saved it.
        disk_bytes: Of the model folder.
        parameters: Of a network.
        run: Its run folder; "" for what needs none.
        front: Whether nothing is as good in everything and better in something.
        beaten_by: What is.
        problem: Why there is no result; "" where there is one.
    """

    name: str
    score: float | None = None
    low: float | None = None
    high: float | None = None
    training_s: float | None = None
    example_s: float | None = None
    single_s: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None
    parameters: int | None = None
    run: str = ""
    front: bool = False
    beaten_by: str | None = None
    problem: str = ""


@dataclass(frozen=True)
class Comparison:
    """All rows, best score first, and what they are of.

    Attributes:
        task: Its name.
        metric: Name of the score.
        definition: What was counted.
        scale: What makes it a number for people: 100 or 1.
        part: Which examples were scored.
        line: One line about the data.
        minutes: The budget of each network.
        rows: One a family.
        others: What needs no training: the simplest answers.
    """

    task: str
    metric: str
    definition: str
    scale: float
    part: str
    line: str
    minutes: float
    rows: list[Row]
    others: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def collect(
    out: Path, recipe: Recipe, names: Sequence[str], measured: Mapping[str, Mapping[str, Any]]
) -> Comparison:
    """The comparison, from the run folders and what was measured around them.

    Raises:
        RunError: No run has a result, or they are of different data.
    """
    results = {name: folder.read_json(out / name / folder.RESULT) for name in names}
    done = {name: result for name, result in results.items() if result}
    if not done:
        raise RunError(f"no run in {out} has a result", fix="see what the runs said above")
    _check_same_data(out, list(done))
    some = next(iter(done.values()))
    rows = [_row(out / name, results[name], measured.get(name, {})) for name in names]
    head = _head(some)
    lower = head["metric"] in LOWER_IS_BETTER
    beaten = dominated_by({row.name: _costs(row, lower) for row in rows if not row.problem})
    rows = [
        replace(row, front=row.name in beaten and beaten[row.name] is None,
                beaten_by=beaten.get(row.name))
        for row in rows
    ]  # fmt: skip
    rows.sort(key=lambda row: (bool(row.problem), (row.score or 0.0) * (1 if lower else -1)))
    return Comparison(
        task=recipe.task.name, line=str(some.get("statistics", "")),
        minutes=float(recipe.training.minutes or DEFAULT_MINUTES), rows=rows,
        others=_others(list(done.values()), head["metric"]), **head,
    )  # fmt: skip


def _head(result: Mapping[str, Any]) -> dict[str, Any]:
    if result.get("task") is not None:
        score = Score(**result["scores"][0])
        return {"metric": score.name, "definition": score.definition, "scale": score.scale,
                "part": result["part"]}  # fmt: skip
    return {"metric": "bits_per_byte", "definition": result["scores"]["rule"], "scale": 1.0,
            "part": "valid"}  # fmt: skip


def _row(run: Path, result: Mapping[str, Any], measured: Mapping[str, Any]) -> Row:
    if not result:
        code = measured.get("exit_code")
        return Row(run.name, run=str(run), problem=f"ended with exit code {code}, without a result")
    if result.get("task") is not None:
        quoted = result["scores"][0]
        score = {"score": quoted["value"], "low": quoted["low"], "high": quoted["high"]}
    else:
        table = result["scores"]["table"]
        score = {"score": table[0]["bits_per_byte"] if table else None}
    files = [path for path in (run / "model").rglob("*") if path.is_file()]
    return Row(
        run.name, **score, training_s=result["time"]["training_s"],
        example_s=measured.get("example_s"), single_s=measured.get("single_s"),
        memory_bytes=measured.get("memory_bytes"),
        disk_bytes=sum(path.stat().st_size for path in files),
        parameters=result.get("parameters"), run=str(run),
    )  # fmt: skip


def _costs(row: Row, lower: bool) -> list[float | None]:
    score = row.score if row.score is None or lower else -row.score
    return [score, row.training_s, row.example_s, row.memory_bytes, row.disk_bytes]


def _others(results: Sequence[Mapping[str, Any]], metric: str) -> list[Row]:
    """The simplest answers, and of text other compressors than the runs themselves."""
    found: dict[str, Row] = {}
    for result in results:
        if result.get("task") is not None:
            simplest = result.get("baseline") or {}
            if metric in simplest:
                found[simplest["name"]] = Row(simplest["name"], simplest[metric])
        else:
            for row in result["scores"]["table"][1:]:
                found.setdefault(row["name"], Row(row["name"], row["bits_per_byte"]))
    return list(found.values())


def _check_same_data(out: Path, names: Sequence[str]) -> None:
    """All runs must be of the same examples; a tokenizer is a family's own."""
    seen: dict[str, str] = {}
    for name in names:
        hashes = folder.read_json(out / name / folder.DATA).get("hashes", {})
        for part in (*PARTS, "text"):
            if part in hashes and seen.setdefault(part, hashes[part]) != hashes[part]:
                raise RunError(
                    f"the data has changed: {out / name} is of other examples than the runs before",
                    fix="put the data back as it was, or compare in a new --out",
                )
