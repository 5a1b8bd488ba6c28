"""A log that is still being written: read once, whatever the pieces it comes in, and bounded."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from inkstone.training import tail
from inkstone.training.tail import Curve, Tail


def _row(step: int, loss: object, kind: str = "step") -> bytes:
    return json.dumps({"kind": kind, "step": step, "loss": loss}).encode() + b"\n"


def test_it_reads_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = Tail(path)
    assert not log.read() and log.loss.points == [] and log.changed_at == 0
    raw = b"".join(_row(step, 1 / step) for step in range(1, 40))
    raw += json.dumps({"kind": "eval", "step": 39, "nats_per_token": 0.5, "ok": True}).encode()
    random.seed(0)
    at = 0
    while at < len(raw):
        end = at + random.randrange(1, 60)
        with open(path, "ab") as file:
            file.write(raw[at:end])
        assert log.read()
        at = end
    assert log.loss.points == [(step, 1 / step) for step in range(1, 40)]
    assert log.scores == {} and log.last["step"] == 39, "the last line is not complete"
    with open(path, "ab") as file:
        file.write(b"\n")
    assert log.read() and log.scores["nats_per_token"].points == [(39, 0.5)]
    assert list(log.scores) == ["nats_per_token"] and log.changed_at > 0


def test_a_run_that_was_resumed_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(_row(step, 2.0) for step in range(1, 9)))
    log = Tail(path)
    log.read()
    other = tmp_path / "new"  # as `write_atomic` replaces it
    other.write_bytes(_row(1, 3.0))
    os.replace(other, path)
    assert log.read() and log.loss.points == [(1, 3.0)]
    path.write_bytes(b"")
    assert log.read() and log.loss.points == [] and log.last == {}


@pytest.mark.parametrize(
    "line",
    [
        b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b'{"kind": "step", "step": true, "loss": 1}',
        b'{"kind": "step", "step": -1, "loss": 1}', b'{"kind": "step", "step": "2", "loss": 1}',
        b'{"kind": "step", "step": 2, "loss": NaN}', b'{"kind": "step", "step": 2, "loss": null}',
        b'{"kind": "step", "step": 2, "loss": 1e999}', b'{"kind": "step", "step": 2, "loss": [1]}',
        b'{"kind": "other", "step": 2, "loss": 1}', b"1" * 5000,
        b'{"kind": "step", "step": 2, "loss": ' + b"9" * 5000 + b"}",
        b'{"kind": "step", "step": 2, "loss": 5, "x": "' + b"y" * tail.LINE_BYTES + b'"}',
    ],
)  # fmt: skip
def test_what_is_no_row_is_passed_over(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(_row(1, 4.0) + line + b"\n" + _row(3, 2.0))
    log = Tail(path)
    assert log.read() and log.loss.points == [(1, 4.0), (3, 2.0)]


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "READ_BYTES", 1000)
    path = tmp_path / "log.jsonl"
    with open(path, "wb") as file:
        for number in range(100):
            row = {"kind": "eval", "step": 1, f"score{number}": 1.0}
            file.write(json.dumps(row).encode() + b"\n")
        file.write(b"x" * 200_000 + b"\n" + _row(1, 1.5))
    log = Tail(path)
    for _ in range(300):
        log.read()
        assert len(log._rest) <= tail.LINE_BYTES + 1000
    assert len(log.scores) == tail.MOST_SCORES and log.loss.points == [(1, 1.5)]


def test_only_plain_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(_row(1, 1.0))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    assert Tail(tmp_path / "real").read()
    for name in ("link", "pipe", "folder", "missing"):
        assert not Tail(tmp_path / name).read()


def test_neighbors_become_their_mean() -> None:
    curve = Curve(most=8)
    for step in range(1, 101):
        curve.add(step, float(step))
    points = curve.points
    assert len(points) == len(curve) <= 8 and points[-1][0] == 100
    steps = [0, *(step for step, _ in points)]
    for before, (step, mean) in zip(steps, points, strict=False):  # each is the mean of its own
        assert mean == pytest.approx((before + 1 + step) / 2)
