"""inkstone compare: runs of their own, resumable, never mixed; the front; the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inkstone.errors import RunError, UsageError
from inkstone.pipeline import compare, compare_report, compared
from inkstone.pipeline.compared import Comparison, Row
from inkstone.recipe import Recipe

EVIL = "<img src=x onerror=alert(1)>"


def topics(path: Path, count: int = 80) -> Path:
    rows = [
        {"text": f"the {('cup', 'law')[i % 2]} number {i} of {i * i}", "label": "cl"[i % 2]}
        for i in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def settings(data: Path, minutes: float = 0.05) -> Recipe:
    return Recipe().with_values(
        {
            "data": {"path": [str(data)]}, "task": {"name": "classification"},
            "tokenizer": {"vocab_size": 300}, "corpus": {"seq_len": 32},
            "training": {"minutes": minutes, "max_steps": 3, "precision": "fp32"},
        }
    )  # fmt: skip


@pytest.fixture
def in_process(tool: Any) -> Callable[[list[str]], tuple[int, int]]:
    """Runs commands of `compare` here, and remembers them."""

    class Here:
        def __init__(self) -> None:
            self.commands: list[list[str]] = []

        def __call__(self, command: list[str]) -> tuple[int, int]:
            assert command[1:4] == ["-m", "inkstone", "train"]
            self.commands.append(command[4:])
            told = tool(*command[3:])
            return told.code, 123_000_000

    return Here()


def test_it_compares_and_goes_on(tool: Any, tmp_path: Path, in_process: Any) -> None:
    data, out = topics(tmp_path / "t.jsonl"), tmp_path / "out"
    given = {"cache": tmp_path / "cache", "device": "cpu", "child": in_process}
    found = compare.compare(settings(data), ["lstm"], out, **given)
    assert {row.name for row in found.rows} == {"bag_of_words", "lstm"}  # the baseline came too
    assert (found.metric, found.scale, found.part) == ("accuracy", 100.0, "valid")
    for row in found.rows:
        assert row.low <= row.score <= row.high and row.memory_bytes == 123_000_000
        files = [p.stat().st_size for p in (Path(row.run) / "model").rglob("*") if p.is_file()]
        assert row.disk_bytes == sum(files) and row.example_s > 0 and row.single_s > 0
        assert row.training_s > 0 and not row.problem
        assert row.front == (row.beaten_by is None)
    assert found.others[0].name.startswith("always")
    one_way = json.loads((out / "lstm" / "model" / "config.json").read_text())
    assert one_way["model_type"] and "directions = 1" in (out / "lstm.toml").read_text()
    assert len(in_process.commands) == 2
    again = compare.compare(settings(data), ["lstm"], out, **given)
    assert again == found and len(in_process.commands) == 2  # nothing was run or timed again
    more = compare.compare(settings(data), ["lstm", "bert"], out, **given)
    assert len(more.rows) == 3 and len(in_process.commands) == 3
    # a run that was cut off before its end goes on as `train --resume` does
    (out / "bert" / "result.json").unlink()
    shutil.rmtree(out / "bert" / "model")
    assert compare.compare(settings(data), ["bert"], out, **given).rows
    assert in_process.commands[-1][:2] == ["--resume", str(out / "bert")]
    with pytest.raises(RunError, match=r"another \[training\]"):
        compare.compare(settings(data, 0.07), ["lstm"], out, **given)
    page = compare_report.write(more, out).read_text(encoding="utf-8")
    assert page.count("<svg") == 4 and "on the front" in page and "always" in page
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", page)


def test_changed_data_is_no_comparison(tmp_path: Path, in_process: Any) -> None:
    data, out = topics(tmp_path / "t.jsonl"), tmp_path / "out"
    given = {"cache": tmp_path / "cache", "device": "cpu", "child": in_process}
    compare.compare(settings(data), ["bag_of_words"], out, **given)
    topics(data, 90)
    with pytest.raises(RunError, match="data has changed"):
        compare.compare(settings(data), ["lstm"], out, **given)


def test_one_that_fails_does_not_end_the_others(tmp_path: Path, in_process: Any) -> None:
    data, out = topics(tmp_path / "t.jsonl"), tmp_path / "out"

    def child(command: list[str]) -> tuple[int, int]:
        return (1, 5) if "bert.toml" in command[4] else in_process(command)

    given = {"cache": tmp_path / "cache", "device": "cpu", "child": child}
    found = compare.compare(settings(data), ["bert", "bag_of_words"], out, **given)
    assert [bool(row.problem) for row in found.rows] == [False, True]
    assert "exit code 1" in found.rows[1].problem and found.rows[1].name == "bert"
    assert "exit code 1" in compare_report.write(found, out).read_text(encoding="utf-8")
    assert compare.compare(settings(data), ["bert"], out, **{**given, "child": in_process})
    assert not any(r.problem for r in compared.collect(out, settings(data), ["bert"], {}).rows)


def test_what_does_not_fit_is_refused(tmp_path: Path, in_process: Any) -> None:
    data = topics(tmp_path / "t.jsonl")
    given = {"cache": tmp_path / "cache", "child": in_process}
    for family, message in [("marian", "does not fit"), ("bret", "bert")]:
        with pytest.raises(UsageError, match=message):
            compare.compare(settings(data), [family], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists() and not in_process.commands
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(RunError, match="holds no comparison"):
        compare.compare(settings(data), ["bert"], mine, **given)
    assert [p.name for p in mine.iterdir()] == ["notes.txt"]


def test_a_child_is_measured_and_told_to_stop(tmp_path: Path) -> None:
    size = 300_000_000
    script = f"x = b'x' * {size}\nfor i in range(20_000_000): pass"  # lives for a few looks
    code, peak = compare.run_child([sys.executable, "-c", script])
    assert code == 0 and size < peak < size + 200_000_000
    assert compare.run_child([sys.executable, "-c", "raise SystemExit(7)"])[0] == 7
    (tmp_path / "child.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *x: (pathlib.Path('saved').touch(), sys.exit(143)))\n"
        "pathlib.Path('ready').touch()\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "parent.py").write_text(
        "import sys\nfrom inkstone.cli.main import Terminated, _watch_signals\n"
        "from inkstone.pipeline.compare import run_child\n"
        "_watch_signals()\nprint('go', flush=True)\n"
        "try: run_child([sys.executable, 'child.py'])\n"
        "except Terminated: sys.exit(9)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    assert parent.stdout is not None and parent.stdout.readline() == b"go\n"
    while not (tmp_path / "ready").exists():
        assert parent.poll() is None
    parent.send_signal(signal.SIGTERM)
    assert parent.wait(30) == 9 and (tmp_path / "saved").exists()


def test_on_the_command_line(
    tool: Any, tmp_path: Path, in_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, out = topics(tmp_path / "t.jsonl"), tmp_path / "out"
    monkeypatch.setattr(compare, "run_child", in_process)
    words = ("compare", data, "--families", "bag_of_words", "lstm", "--minutes", "0.05", "--out",
             out, "--cache", tmp_path / "cache", "tokenizer.vocab_size=300", "corpus.seq_len=32",
             "training.max_steps=3", "training.precision=fp32")  # fmt: skip
    told = tool(*words)
    assert told.code == 0, told.err
    for part in ("bag_of_words", "lstm", "always", "accuracy", "Pareto", "comparison.html"):
        assert part in told.out
    assert (out / "comparison.html").is_file()
    row = tool(*words, "--json").json
    assert {r["name"] for r in row["rows"]} == {"bag_of_words", "lstm"}
    assert row["report"] == str(out / "comparison.html")
    assert tool("compare").code == 2
    assert tool("compare", tmp_path / "absent.jsonl").code == 1
    assert tool("compare", data, "--families", "nothing", "--out", tmp_path / "x").code == 2


def test_a_picture_holds_every_point_and_no_markup() -> None:
    rows = [
        Row(EVIL, 0.9, 0.85, 0.95, 3.0, 0.001, 0.01, 10**8, 10**6, front=True),
        Row("b", 0.7, 0.6, 0.8, 300.0, 0.1, 0.1, 10**9, 10**7, beaten_by=EVIL),
        Row("c", problem="ended"),
    ]
    others = [Row("always", 0.5)]
    found = Comparison("t", "accuracy", "share", 100.0, "test", EVIL, 1.0, rows, others)
    for field, title in compare_report.AXES:
        drawn = compare_report.picture(found, field, title)
        assert drawn is not None and len(drawn.points) == 2 and len(drawn.lines) == 1
        for point in drawn.points:
            assert compare_report.LEFT <= point.x <= compare_report.WIDTH - compare_report.RIGHT
            assert point.high <= point.y <= point.low  # downwards
            assert point.high >= compare_report.TOP
            assert point.low <= compare_report.HEIGHT - compare_report.BOTTOM
        assert drawn.points[0].x < drawn.points[1].x and drawn.points[0].y < drawn.points[1].y
    assert compare_report.picture(found, "parameters", "x") is None


def test_the_page_escapes(tmp_path: Path) -> None:
    rows = [Row(EVIL, 0.9, training_s=1.0, run=EVIL, front=True)]
    found = Comparison(EVIL, EVIL, EVIL, 1.0, "test", EVIL, 1.0, rows, [Row(EVIL, 0.5)])
    page = compare_report.write(found, tmp_path).read_text(encoding="utf-8")
    assert "<img" not in page and page.count("&lt;img") >= 5
