"""cli/train.py: from a folder to a model in one command; refusals; resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.recipe import load
from inkstone.training.lock import run_lock


def test_a_run_leaves_everything_that_it_promises(finished: tuple[Path, Any]) -> None:
    run, told = finished
    result = told.json
    for name in ("recipe.toml", "log.jsonl", "result.json", "report.html", "loss.png",
                 "plan.json", "model/model.safetensors", "model/config.json",
                 "model/tokenizer.json"):  # fmt: skip
        assert (run / name).is_file(), name
    assert result["steps"] == 10 and result["tokens"] == 10 * 256
    names = [row["name"] for row in result["scores"]["table"]]
    assert names[0] == "this model" and any("Kneser" in n for n in names) and "xz" in names
    assert all(row["bits_per_byte"] > 0 for row in result["scores"]["table"])
    assert len(result["samples"]) == 3 and "rule" in result["scores"]
    assert result["time"]["training_s"] > 0 and result["time"]["planned_training_s"] > 0


def test_the_saved_recipe_is_complete_and_runs_again(
    finished: tuple[Path, Any], tool: Any, tmp_path: Path
) -> None:
    run, _ = finished
    saved = load(run / "recipe.toml")
    assert saved.model.fields["d_model"] == 32 and saved.training.tokens_per_step == 256
    assert saved.training.micro_batch_size and saved.training.eval_every
    text = (run / "recipe.toml").read_text()
    assert "# as many sequences at once" in text
    told = tool("train", run / "recipe.toml", "--run", tmp_path / "again", "--cache",
                run.parent / "cache", "--json", "evaluation.baselines=false")  # fmt: skip
    assert told.code == 0, told.err
    again = (tmp_path / "again" / "model" / "model.safetensors").read_bytes()
    assert again == (run / "model" / "model.safetensors").read_bytes()
    assert told.err.count("reused: ") >= 3


def test_provenance_names_no_folder_of_the_user(finished: tuple[Path, Any]) -> None:
    run, _ = finished
    info = json.loads((run / "model" / "inkstone.json").read_text())
    assert info["recipe"]["data"]["path"] == ["data"]
    assert str(run.parent) not in json.dumps(info)
    assert info["data"]["hashes"]["text"] and info["scores"]["bits_per_byte"] > 0


def test_progress_goes_to_stderr_and_the_result_to_stdout(tool: Any, tmp_path: Path) -> None:
    told = tool.train(tmp_path, "evaluation.baselines=false")
    assert told.code == 0
    assert "training.lr = " in told.err and "step 10/10" in told.err and "[0:" in told.err
    assert "this model" in told.out and "inkstone chat" in told.out
    assert "Traceback" not in told.err
    again = tool.train(tmp_path, data=tmp_path / "data")
    assert again.code == 1
    assert "already holds a run" in again.err and "--resume" in again.err


def test_quiet_is_quiet(tool: Any, tmp_path: Path) -> None:
    told = tool.train(tmp_path, "--quiet", "--json", "evaluation.baselines=false", steps=2)
    assert told.code == 0 and told.err == "" and told.json["steps"] == 2


def test_refusals(tool: Any, tmp_path: Path) -> None:
    data = tool.corpus(tmp_path / "data")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    (tmp_path / "file").write_text("mine")
    cache = ("--cache", tmp_path / "cache")
    cases: list[tuple[list[object], int, str]] = [
        ([], 2, "nothing to train on"),
        (["--data", data, "--run", data / "run"], 2, "inside its own data"),
        (["--data", data, "--run", data], 1, "not empty"),
        (["--data", data, "--run", tmp_path / "full"], 1, "not empty"),
        (["--data", data, "--run", tmp_path / "file"], 1, "is a file"),
        (["--data", data, "--run", tmp_path / "r", "--cache", data / "c"], 2, "inside its own"),
        (["--data", tmp_path / "absent", "--run", tmp_path / "r"], 1, "absent"),
        (["--data", data, "--minutes", "0", "--run", tmp_path / "r"], 2, "training.minutes"),
        (["--data", data, "--minutes", "nan", "--run", tmp_path / "r"], 2, "training.minutes"),
        (["gpt-smal", "--data", data], 2, "did you mean 'gpt-small'"),
        (["gpt-small", "--run", tmp_path / "r"], 2, "no data"),
        (["gpt-small", "traning.lr=1", "--data", data], 2, "did you mean 'training'"),
        (["--data", data, "--run", tmp_path / "r", "model.n_heads=7", "model.d_model=100"], 1,
         "n_heads"),
        (["--resume", tmp_path / "full"], 1, "holds no run"),
        (["--resume", tmp_path / "full", "--minutes", "3"], 2, "takes no other setting"),
        (["gpt-small", "extra", "--data", data], 2, "cannot read 'extra'"),
        (["--device", "cuda:99", "--data", data, "--run", tmp_path / "r"], 1, "cannot be used"),
    ]  # fmt: skip
    for arguments, code, message in cases:
        with_cache = arguments if "--cache" in arguments else [*arguments, *cache]
        told = tool("train", *with_cache)
        assert (told.code, message in told.err) == (code, True), (arguments, told)
        assert "Traceback" not in told.err
    assert not (tmp_path / "r").exists() and not (data / "run").exists()
    assert (tmp_path / "full" / "x").read_text() == "mine"


def test_resuming_a_finished_run_changes_nothing(finished: tuple[Path, Any], tool: Any) -> None:
    run, told = finished
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = tool("train", "--resume", run, "--cache", run.parent / "cache", "--json")
    assert again.code == 0 and again.json == told.json and "is finished" in again.err
    assert before == {p: p.stat().st_mtime_ns for p in run.rglob("*")}


def test_changed_data_is_noticed_on_resume(tool: Any, tmp_path: Path) -> None:
    assert tool.train(tmp_path, "evaluation.baselines=false", steps=2).code == 0
    (tmp_path / "run" / "result.json").unlink()
    file = tmp_path / "data" / "text.jsonl"
    file.write_text(file.read_text() + '\n{"text": "a new document"}')
    told = tool("train", "--resume", tmp_path / "run", "--cache", tmp_path / "cache")
    assert told.code == 1 and "the text" in told.err and "changed since it began" in told.err


def test_stdin_is_data(tool: Any, tmp_path: Path) -> None:
    text = "\n\n".join(f"paragraph {i} about the number {i * i}" for i in range(200))
    told = tool("train", "--data", "-", "--run", tmp_path / "run", "--cache", tmp_path / "cache",
                "--json", "training.max_steps=2", "evaluation.baselines=false", *tool.small,
                stdin=text)  # fmt: skip
    assert told.code == 0, told.err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_a_run_that_goes_on_to_the_same_end(
    signum: signal.Signals, tool: Any, tmp_path: Path
) -> None:
    """Interrupted and resumed = never interrupted, to the bit."""
    data = tool.corpus(tmp_path / "data")
    settings = ("evaluation.baselines=false", "evaluation.samples=0", "training.save_every=20")
    straight = tool.train(tmp_path / "a", *settings, steps=60, data=data)
    assert straight.code == 0, straight.err
    run = tmp_path / "b"
    process = subprocess.Popen(
        [sys.executable, "-m", "inkstone", "train", "--data", str(data), "--run", str(run),
         "--cache", str(tmp_path / "a" / "cache"), "training.max_steps=60", *tool.small,
         *settings],
        stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )  # fmt: skip
    end = time.monotonic() + 60
    while not (run / "log.jsonl").exists() and time.monotonic() < end and process.poll() is None:
        os.sched_yield()
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    if process.returncode != 0:  # else it was faster than the signal
        assert process.returncode == 128 + signum, err
        assert "--resume" in err
        told = tool("train", "--resume", run, "--cache", tmp_path / "a" / "cache")
        assert told.code == 0, told.err
    weights = [(f / "model" / "model.safetensors").read_bytes() for f in (tmp_path / "a/run", run)]
    assert weights[0] == weights[1]


def test_a_second_trainer_is_refused_at_once(finished: tuple[Path, Any], tmp_path: Path) -> None:
    """The lock is asked before torch is imported, so the answer takes no second."""
    run, _ = finished
    code = (
        "import sys; from inkstone.cli.main import main; "
        f"code = main(['train', '--resume', {str(run)!r}]); "
        "print(code, 'torch' in sys.modules)"
    )
    with run_lock(run):
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert told.stdout.split() == ["1", "False"]
    assert f"pid {os.getpid()}" in told.stderr and "Traceback" not in told.stderr
