"""report.py: escapes everything, scales the curve, writes from whatever a run holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inkstone import report
from inkstone.errors import RunError

EVIL = '<img src=x onerror="alert(1)">'


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(f"# {EVIL}\n")
    rows = [{"kind": "step", "step": i, "loss": 8 / i, "tokens_per_s": 1.0, "mfu": None}
            for i in range(1, 900)]  # fmt: skip
    rows.append({"kind": "eval", "step": 500, "nats_per_token": 1.0})
    rows.append({"kind": "eval", "step": 600, "nats_per_token": None})
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, rows)) + '\n{"kind": "st')
    score = {"name": EVIL, "bits_per_byte": 1.5, "perplexity": None, "rule": EVIL}
    result = {
        "parameters": 10, "tokens": 10, "steps": 2, "best_step": 1, "ending": EVIL,
        "scores": {"table": [score], "rule": EVIL}, "samples": [{"prompt": EVIL, "text": EVIL}],
        "time": {"planned_training_s": 60, "training_s": 61.2, "planned_step_s": 0.1,
                 "step_s": 0.2, "evaluation_s": 1, "total_s": 3700},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "data.json").write_text(json.dumps({"line": EVIL}))
    choice = {"key": EVIL, "value": EVIL, "reason": EVIL, "chosen": True}
    (folder / "plan.json").write_text(json.dumps({"choices": [choice]}))
    return folder


def test_nothing_in_a_run_becomes_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / EVIL.replace("/", ""))
    page = report.write(run).read_text(encoding="utf-8")
    assert "<img" not in page and page.count("&lt;img") >= 10
    assert "1:01:40" in page
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_curve_stays_in_its_drawing_and_thins(tmp_path: Path) -> None:
    train = [(float(i), 8.0 / i) for i in range(1, 5000)]
    curve = report.curve(train, [(100.0, 2.0)])
    assert curve is not None
    numbers = [
        tuple(map(float, p.split())) for p in re.findall(r"[ML]([\d.]+ [\d.]+)", curve.train)
    ]
    assert len(numbers) <= report.MAX_POINTS
    assert all(report.LEFT <= x <= report.WIDTH - report.RIGHT for x, _ in numbers)
    assert all(report.TOP <= y <= report.HEIGHT - report.BOTTOM for _, y in numbers)
    assert report.curve([], []) is None
    assert report.curve([(1.0, 2.0)], []) is not None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 13), (2.1, 7.9), (3.0, 3.01), (0, 1e6)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = report.ticks(low, high)
    assert 2 <= len(found) <= 7 and all(low <= x <= high + 1e-9 for x in found)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        report.write(tmp_path)
    run = make_run(tmp_path / "run")
    (run / "result.json").write_text("{")
    with pytest.raises(RunError, match=r"result\.json is damaged"):
        report.write(run)


def test_a_task_without_labels_has_a_report(tmp_path: Path) -> None:
    """A translation has no table of labels, no confusion and no calibration."""
    run = make_run(tmp_path / "run")
    score = {"name": "bleu", "value": 31.4, "low": 30.0, "high": 33.0, "definition": "sacrebleu"}
    times = ("planned_training_s", "training_s", "evaluation_s", "examples_per_s", "total_s")
    result = {
        "task": "translation", "family": "t5", "parameters": 10, "counts": {"train": 3},
        "part": "test", "examples": 2, "scores": [score], "labels": [],
        "time": dict.fromkeys(times, 1),
        "baseline": {"name": "the source, unchanged", "bleu": 0.5},
        "mistakes": [{"text": "a", "given": "b", "found": EVIL, "badness": 1.0}],
    }  # fmt: skip
    (run / "result.json").write_text(json.dumps(result))
    (run / "data.json").write_text(json.dumps({"task": "translation", "unit": "token"}))
    page = report.write(run).read_text(encoding="utf-8")
    assert "31.4" in page and "&lt;img" in page and "What was taken for what" not in page
