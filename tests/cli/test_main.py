"""cli/main.py: start-up, help, exit codes, output that somebody stopped reading."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

COMMANDS = (
    "demo", "new", "compare", "train", "generate", "chat", "eval", "look", "merge", "report",
    "recipes", "doctor",
)  # fmt: skip


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_help_and_import_load_nothing_heavy() -> None:
    """Help answers in 0.3 s because of what it does not import (a clock would be flaky here)."""
    told = python("-X", "importtime", "-m", "inkstone", "--help")
    assert told.returncode == 0 and "Train a language model on your own text" in told.stdout
    loaded = {line.rsplit("|", 1)[-1].strip() for line in told.stderr.splitlines()}
    assert "typer" in loaded
    heavy = {"torch", "numpy", "rich.console", "matplotlib", "tokenizers", "pydantic", "jinja2"}
    assert not heavy & loaded
    code = "import sys, inkstone; assert not {'torch', 'numpy'} & set(sys.modules)"
    assert python("-c", code).returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_on_one_line_and_in_full(tool: Any, command: str) -> None:
    brief = tool("--help")
    line = next(x for x in brief.out.splitlines() if x.strip().startswith(command))
    assert line.rstrip().endswith(".") and not line.rstrip().endswith("...")
    full = tool(command, "--help")
    assert full.code == 0 and "Usage: inkstone " + command in full.out


def test_usage_mistakes_exit_with_2(tool: Any) -> None:
    assert "Did you mean 'train'" in (told := tool("trian")).err and told.code == 2
    assert tool("train", "--no-such-option").code == 2
    assert tool("train", "--minutes", "soon").code == 2
    assert tool("generate").code == 2
    assert tool().code == 2


def test_version(tool: Any) -> None:
    from inkstone import __version__

    assert tool("--version").out == f"inkstone {__version__}\n"


def test_recipes_are_listed_and_shown(tool: Any, tmp_path: Path) -> None:
    assert "gpt-small" in tool("recipes").out
    assert "gpt-small" in tool("recipes", "--json").json
    shown = tool("recipes", "gpt-small")
    assert 'family = "gpt2"' in shown.out
    assert tool("recipes", "../x").code == 2


def test_stdout_closed_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as out:
        told = subprocess.run(
            [sys.executable, "-m", "inkstone", "recipes"], stdout=out, stderr=subprocess.PIPE,
            text=True, timeout=60,
        )  # fmt: skip
    assert told.returncode == 1 and told.stderr == ""


def test_doctor_reports_what_it_measured(tool: Any) -> None:
    facts = tool("doctor", "--json", "--seconds", "0.05").json
    assert facts["machine"]["matmul_gflops"]["fp32"] > 0 and facts["extras"].keys() >= {"data"}
    text = tool("doctor", "--seconds", "0.05").out
    for name in ("python", "torch", "instructions", "matmul", "memory speed", "gpu", "disk"):
        assert name in text


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "| head -c 3 >/dev/null"])
def test_a_closed_output_is_no_crash(closed: str) -> None:
    script = f"set -o pipefail; {sys.executable} -m inkstone recipes {closed}"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert told.returncode in (0, 1) and "Traceback" not in told.stderr


def test_two_dozen_descriptors_are_enough(finished: tuple[Path, Any]) -> None:
    run, _ = finished
    script = f"ulimit -n 24; {sys.executable} -m inkstone generate {run} the --max-tokens 3"
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (0, "") and told.stdout.startswith("the")
