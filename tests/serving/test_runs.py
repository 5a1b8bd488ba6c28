"""Runs that are watched: what their logs tell, and nothing outside of the named folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from inkstone.errors import UsageError
from inkstone.serving.config import ServeConfig
from inkstone.serving.errors import ApiError
from inkstone.serving.page import PATHS
from inkstone.serving.runs import MOST_RUNS, Watch
from tests.serving.conftest import Start, small_model
from tests.serving.page_models import FakeRun
from tests.serving.test_guard import KEY, ask


def _get(server: Any, path: str, **headers: str) -> tuple[int, Any]:
    status, _, content = ask(server, None, path=path, method="GET", **headers)
    return status, json.loads(content)


def test_runs_over_http(start: Start, tmp_path: Path) -> None:
    run, other = FakeRun(tmp_path / "runs" / "one two", 1.0), FakeRun(tmp_path / "alone", 2.0)
    run.go_on(45)
    server = start(
        ("zebra", small_model()), keys=(KEY,),
        watch=(str(tmp_path / "runs"), str(tmp_path / "alone")),
    )  # fmt: skip
    status, found = _get(server, "/v1/runs")
    assert status == 200 and found["object"] == "list" and found["watching"] is True
    (one,) = found["data"]  # the other one has told nothing yet
    assert one["id"] == "one two" and one["step"] == 45 and one["max_steps"] == 400
    assert one["in_training"] is True and one["quiet_s"] < 60 and one["loss"] > 1
    status, curves = _get(server, "/v1/runs/one%20two")
    assert status == 200 and curves["id"] == "one two" and len(curves["losses"]) == 45
    assert [step for step, _ in curves["scores"]["nats_per_token"]] == [20, 40]
    other.go_on(400)
    assert {r["id"]: r["in_training"] for r in _get(server, "/v1/runs")[1]["data"]} == {
        "one two": True, "alone": False,
    }  # fmt: skip
    for path in ("/v1/runs/..%2falone", "/v1/runs/../../etc/passwd", "/v1/runs/%00", "/v1/runs/x"):
        assert _get(server, path)[0] == 404, path
    for path in ("/v1/runs", "/v1/runs/alone"):
        assert _get(server, path, Authorization="")[0] == 401, "runs tell something"
    for path in PATHS:  # these do not
        status, headers, content = ask(server, None, path=path, method="GET", Authorization="")
        assert status == 200 and headers["cache-control"] == "no-store"
        assert b"one two" not in content and b"zebra" not in content
    assert ask(server, {}, path="/", Authorization="")[0] == 405
    status, headers, content = ask(server, None, path="/", method="HEAD", Authorization="")
    assert status == 200 and not content and "content-security-policy" in headers
    for path in ("/page/", "/page/..%2fpage.py", "/page/../guard.py", "/page/style.css%00",
                 "//page/style.css", "/index.html"):  # fmt: skip
        assert ask(server, None, path=path, method="GET", Authorization="")[0] == 401, path
        assert ask(server, None, path=path, method="GET")[0] == 404, path


def test_nothing_is_watched_unless_asked(start: Start) -> None:
    server = start(("small", small_model()))
    assert _get(server, "/v1/runs")[1] == {"object": "list", "watching": False, "data": []}
    with pytest.raises(UsageError, match="no folder"):
        Watch(["/no/such/place"])
    assert ServeConfig().watch == ()


def test_links_lead_nowhere(tmp_path: Path) -> None:
    secret = FakeRun(tmp_path / "secret", 1.0)
    secret.go_on(3)
    inside = tmp_path / "runs"
    (inside / "linked-log").mkdir(parents=True)
    (inside / "linked-log" / "log.jsonl").symlink_to(secret.log.path)
    (inside / "linked-run").symlink_to(tmp_path / "secret")
    (inside / "pipe").mkdir()
    os.mkfifo(inside / "pipe" / "log.jsonl")
    (inside / "file").write_text("x")
    watch = Watch([inside])
    assert watch.all() == []
    for name in ("linked-log", "linked-run", "pipe", "../secret", "secret", ""):
        with pytest.raises(ApiError) as error:
            watch.one(name)
        assert error.value.status == 404


def test_what_a_log_says_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    row = {"kind": "step", "step": 3, "max_steps": 7.5, "loss": "low", "tokens": True,
           "tokens_per_s": [1], "epoch": 1 << 90, "elapsed_s": None}  # fmt: skip
    (tmp_path / "odd" / "log.jsonl").write_text(json.dumps(row) + "\n")
    (one,) = Watch([tmp_path]).all()
    assert one["step"] == 3 and one["epoch"] == 1 << 90
    assert all(one[key] is None for key in ("max_steps", "loss", "tokens", "tokens_per_s"))


def test_only_so_many_and_the_newest(tmp_path: Path) -> None:
    for number in range(MOST_RUNS + 6):
        FakeRun(tmp_path / str(number), 1.0).go_on(1)
        os.utime(tmp_path / str(number), (number, number))
    watch = Watch([tmp_path])
    names = {run["id"] for run in watch.all()}
    assert len(names) == MOST_RUNS and str(MOST_RUNS + 5) in names and "0" not in names
