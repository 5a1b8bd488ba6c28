"""eval --shots: a table for people, JSON for programs, usage errors by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Finished = tuple[Path, Any]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("questions")
    for part, count in (("train", 12), ("test", 6)):
        rows = [{"text": f"the cat {part} {i}", "label": i % 2} for i in range(count)]
        (folder / f"{part}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return folder


def test_shots_are_asked_in_turn(finished: Finished, tool: Any, data: Path) -> None:
    run, _ = finished
    arguments = ("eval", run, "--data", data, "--shots", "0,1", "--labels", "red,blue")
    told = tool(*arguments)
    assert told.code == 0 and "chance" in told.out and "50.00" in told.out
    assert "per token of the option" in told.out
    rows = tool(*arguments, "--json", "--template", r"{text}\nIt is").json
    assert [row["shots"] for row in rows] == [0, 1] and rows[0]["examples"] == 6
    assert rows == tool(*arguments, "--json", "--template", r"{text}\nIt is").json
    assert tool(*arguments, "--limit", 2, "--json", "--shared", "--by", "sum").json[0][
        "examples"
    ] == 2  # fmt: skip


def test_mistakes_are_named(finished: Finished, tool: Any, data: Path) -> None:
    run, _ = finished
    for more, message in [
        (("--shots", "many"), "no list of numbers"), (("--shots", "50"), "to draw from"),
        (("--shots", "0", "--by", "luck"), "unknown scoring"),
        (("--shots", "0", "--template", "{body}"), "{body}"),
        (("--shots", "0", "--labels", "red"), "no name is given"),
    ]:  # fmt: skip
        told = tool("eval", run, "--data", data, *more)
        assert told.code in (1, 2) and message in told.err, told
