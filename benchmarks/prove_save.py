"""Every system call of a save killed, then failed with ENOSPC and EIO, by strace's injection.

Two saves are taken apart: a new training checkpoint that pushes out the oldest one, and a model
folder that replaces an older one. First strace lists the system calls of an undisturbed save. Then,
for each of them in turn, a fresh copy of the run is saved once more with that one call killed
(SIGKILL before it acts), or made to fail with ENOSPC, or with EIO. Afterwards the old or the new
state must load with every hash right, and the next save must succeed.

    python -m benchmarks.prove_save
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import ROOT
from inkstone.checkpoint import load_model, save_model
from inkstone.errors import InkstoneError
from inkstone.files import atomic_folder
from inkstone.models import gpt2
from inkstone.training import state as states
from inkstone.training.config import TrainingConfig
from inkstone.training.optim import Optimizers

OLD, NEW = 10, 20  # steps, and the value of every weight
FAULTS = {"kill": "signal=KILL", "ENOSPC": "error=ENOSPC", "EIO": "error=EIO"}
SAVED, REFUSED, BROKEN = 0, 3, 4  # exit codes of the saving process
NOT_INJECTED = {"exit_group", "exit"}  # the save is over


class Scene:
    """A small model whose weights tell which save they come from, and the folder it is saved in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        config = gpt2.Config(vocab_size=64, d_model=16, n_layers=1, n_heads=1, max_seq_len=16)
        self.model = gpt2.Model(config)
        self.optimizers = Optimizers(self.model, TrainingConfig(max_steps=1))

    def _fill(self, value: int) -> None:
        with torch.no_grad():
            for p in self.model.parameters():
                p.fill_(value)
                p.grad = torch.full_like(p, 1e-3)
        self.optimizers.step(1.0)
        with torch.no_grad():
            for p in self.model.parameters():
                p.fill_(value)

    def _value(self, model: Any) -> int:
        values = {
            float(v) for p in model.parameters() for v in (p.detach().min(), p.detach().max())
        }
        assert len(values) == 1, f"weights of two saves are mixed: {values}"
        return int(values.pop())


class Checkpoint(Scene):
    """`keep` = 1: the save of step 20 also removes step 10."""

    name = "training checkpoint, the oldest one dropped"

    def save(self, step: int) -> None:
        self._fill(step)
        state = states.TrainingState(step=step, best_step=step, best_score=1.0)
        state.rng = states.get_rng(torch.device("cpu"))
        states.save(self.root, state, self.optimizers, lambda f: save_model(f, self.model, None), 1)

    def load(self) -> int:
        state, messages = states.restore(self.root, self.model, self.optimizers, {})
        assert state is not None, "no checkpoint at all"
        assert not messages, messages
        assert self._value(self.model) == state.step
        return state.step


class Folder(Scene):
    """A model folder that is replaced."""

    name = "model folder, replaced"

    def save(self, step: int) -> None:
        self._fill(step)
        with atomic_folder(self.root / "model") as folder:
            save_model(folder, self.model, None)

    def load(self) -> int:
        return self._value(load_model(self.root / "model")[0])


def traced_save(scene: Scene, *options: str) -> int:
    """Save step 20 in a forked process under strace; its exit code, or minus the signal."""
    ready, go = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        _save_and_exit(scene, ready, go)
    os.close(ready[1])
    os.close(go[0])
    os.read(ready[0], 1)  # the child is past everything but the save
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(child), "-qq", *options],
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _wait_for_tracer(child, strace)
    os.write(go[1], b"x")
    _, status = os.waitpid(child, 0)
    strace.communicate()
    os.close(ready[0])
    os.close(go[1])
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _save_and_exit(scene: Scene, ready: tuple[int, int], go: tuple[int, int]) -> None:
    code = BROKEN
    try:
        os.close(ready[0])
        os.close(go[1])
        os.write(ready[1], b"x")
        os.read(go[0], 1)
        scene.save(NEW)
        code = SAVED
    except InkstoneError:
        code = REFUSED
    except BaseException as error:  # reported as a failure of the proof
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def _wait_for_tracer(child: int, strace: subprocess.Popen[str]) -> None:
    while not re.search(r"TracerPid:\s*[1-9]", Path(f"/proc/{child}/status").read_text()):
        if strace.poll() is not None:
            os.kill(child, signal.SIGKILL)
            sys.exit(f"strace cannot attach: {strace.stderr.read() if strace.stderr else ''}")


def system_calls(scene: Scene, log: Path) -> list[tuple[str, int]]:
    """(name, which of that name) of every system call of one undisturbed save, in order."""
    code = traced_save(scene, "-o", str(log))
    assert code == SAVED, code
    seen: Counter[str] = Counter()
    calls = []
    for line in log.read_text(errors="replace").splitlines():
        found = re.match(r"\d+\s+(?:<\.\.\. )?(\w+)(\(| resumed)", line)
        if found and found[2] == "(":
            seen[found[1]] += 1
            calls.append((found[1], seen[found[1]]))
    # the first read is not of the save: the process waits in it for strace
    return [call for call in calls if call[0] not in NOT_INJECTED and call != ("read", 1)]


def prove(
    make: Callable[[Path], Scene], root: Path, every: int = 1, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Disturb every `every`-th system call of one save, in each of three ways.

    Returns:
        The number of system calls, of experiments, of outcomes by kind, and what went wrong.
    """
    torch.set_num_threads(1)  # a forked process has no other threads
    before = root / "before"
    before.mkdir(parents=True)
    scene = make(before)
    scene.save(OLD)
    work = root / "work"

    def fresh() -> Scene:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(before, work)
        scene.root = work
        return scene

    calls = system_calls(fresh(), root / "strace.log")
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for number, (call, which) in enumerate(calls[::every]):
        for fault, injection in FAULTS.items():
            fresh()
            rule = f"inject={call}:{injection}:when={which}"
            code = traced_save(scene, "-o", os.devnull, "-e", f"trace={call}", "-e", rule)
            ended = {SAVED: "saved", REFUSED: "typed error"}.get(code, "killed")
            try:
                found = scene.load()
                assert found in {OLD, NEW}, found
                assert code != BROKEN, "not a typed error"
                assert code >= 0 or fault == "kill" or code == -signal.SIGABRT, f"died of {-code}"
                assert ended != "saved" or found == NEW, "said that it had saved, and had not"
                scene.save(NEW + 1)
                assert scene.load() == NEW + 1
                outcomes[f"{fault}: {ended}, {'new' if found == NEW else 'old'} one loads"] += 1
            except (AssertionError, InkstoneError, OSError) as error:
                wrong.append(f"{call} #{which}, {fault}: {error}")
        if number % 20 == 0:
            say(f"{scene.name}: {number}/{len(calls[::every])} system calls")
    return {
        "save": scene.name,
        "system_calls": len(calls),
        "experiments": len(calls[::every]) * len(FAULTS),
        "outcomes": dict(sorted(outcomes.items())),
        "wrong": wrong,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1, help="Only every n-th system call.")
    arguments = parser.parse_args()
    if shutil.which("strace") is None:
        sys.exit("strace is missing; install Debian's package strace")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool,
    ):
        started = [
            pool.submit(prove, kind, Path(folder) / kind.__name__, arguments.every, _say)
            for kind in (Checkpoint, Folder)
        ]
        rows = [one.result() for one in started]
    text = json.dumps(rows, indent=1) + "\n"
    print(text, end="")
    out = ROOT / "docs" / "proofs"
    out.mkdir(parents=True, exist_ok=True)
    (out / "save.json").write_text(text, encoding="utf-8")
    if any(row["wrong"] for row in rows):
        sys.exit("some saves left neither the old nor the new state, or hid an error")


if __name__ == "__main__":
    main()
