"""What happens to a run between its sessions, and to its process: it goes on, or says what is."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.errors import CheckpointError, RunError
from inkstone.files import atomic_folder
from inkstone.training import foundations
from inkstone.training import state as states
from inkstone.training.log import Hook, StepInfo
from inkstone.training.loop import Trainer, TrainingInterrupted

Make = Callable[..., Trainer]


class Listen(Hook):
    """Keeps what the run says."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_message(self, text: str) -> None:
        self.said.append(text)


class At(Hook):
    """Does something at one step."""

    def __init__(self, step: int, act: Callable[[], Any]) -> None:
        self.step, self.act = step, act

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.step:
            self.act()


def interrupt() -> None:
    """SIGTERM to this process."""
    os.kill(os.getpid(), signal.SIGTERM)


def broken_off(make_trainer: Make, at: int, **settings: Any) -> Trainer:
    """A run that was interrupted at a step."""
    trainer = make_trainer("broken", hooks=[At(at, interrupt)], **settings)
    with pytest.raises(TrainingInterrupted):
        trainer.run()
    return trainer


def same_end(left: Trainer, right: Trainer) -> bool:
    """Whether two runs ended with the same weights, to the bit."""
    there = right.model.state_dict()
    return all(torch.equal(p, there[name]) for name, p in left.model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fingerprint": {"tokenizer": "two"}}, "tokenizer: one then, two now"),
        ({"fingerprint": {}}, "tokenizer: one then, none now"),
        ({"optimizer": "adamw"}, "training.optimizer: "),
        ({"lr": 0.5}, "training.lr: "),
        ({"seed": 9}, "training.seed: "),
    ],
)
def test_a_changed_tokenizer_or_recipe_is_refused(
    make_trainer: Make, changed: dict[str, Any], message: str
) -> None:
    first = {"fingerprint": {"tokenizer": "one"}}
    trainer = broken_off(make_trainer, 5, **first)
    with pytest.raises(RunError, match=message):
        make_trainer("broken", **{**first, **changed}).run()
    assert len(states.checkpoints(trainer.run_folder)) == 1  # nothing was written, nothing lost


def test_another_build_of_torch_goes_on_and_says_that_bits_may_differ(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_off(make_trainer, 5)
    real, listen = foundations.torch.__version__, Listen()
    monkeypatch.setattr(foundations.torch, "__version__", "9.9")
    again = make_trainer("broken", hooks=[listen])
    again.run()
    assert again.state.step == 30
    assert any(f"torch: {real} then, 9.9 now" in said for said in listen.said)
    assert any("not bit for bit" in said for said in listen.said)


def test_what_is_deleted_between_two_sessions(make_trainer: Make) -> None:
    whole = make_trainer("whole")
    whole.run()
    for victim in (0, -1):
        settings = {"save_every": 5, "keep_checkpoints": 3}
        trainer = broken_off(make_trainer, 13, **settings)
        found = states.checkpoints(trainer.run_folder)
        assert [p.name[-2:] for p in found] == ["05", "10", "13"]
        shutil.rmtree(found[victim])
        again = make_trainer("broken", **settings)
        again.run()
        assert same_end(whole, again)
        shutil.rmtree(trainer.run_folder)


def test_stale_files_and_a_clock_that_went_back_change_nothing(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = make_trainer("whole")
    whole.run()
    trainer = broken_off(make_trainer, 13, save_every=5, keep_checkpoints=3)
    folder = trainer.run_folder / "checkpoints"
    (folder / ".step-00000014.tmp-0123abcd" / "training").mkdir(parents=True)
    (folder / ".step-00000014.tmp-0123abcd" / "model.safetensors").write_bytes(b"half")
    (trainer.run_folder / ".best.json.99.tmp").write_text("{")
    for age, path in enumerate(states.checkpoints(trainer.run_folder)):
        os.utime(path, (1e9 - age, 1e9 - age))  # the newest looks oldest
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    listen = Listen()
    again = make_trainer("broken", save_every=5, keep_checkpoints=3, hooks=[listen])
    again.run()
    assert "continuing from step 13" in listen.said
    assert same_end(whole, again)
    assert not list(folder.glob(".*"))


def test_a_stopped_process_goes_on_to_the_same_end(make_trainer: Make) -> None:
    """SIGSTOP in the middle; a helper waits until the process stands still and wakes it."""
    pid = os.getpid()
    wake = f"while ! grep -q '^State:.[Tt]' /proc/{pid}/status; do :; done; kill -CONT {pid}"

    def stop() -> None:
        helpers.append(subprocess.Popen(["sh", "-c", wake]))
        os.kill(pid, signal.SIGSTOP)

    helpers: list[subprocess.Popen[bytes]] = []
    whole, stopped = make_trainer("whole"), make_trainer("stopped", hooks=[At(9, stop)])
    gaps: list[int] = []
    whole.run()
    stopped._continued = lambda: gaps.append(stopped.state.step)  # type: ignore[method-assign]
    stopped.run()
    assert helpers[0].wait() == 0 and len(gaps) == 1
    assert same_end(whole, stopped)


def test_a_place_that_cannot_be_written_is_named() -> None:
    with (
        pytest.raises(CheckpointError, match="could not save /proc/inkstone"),
        atomic_folder(Path("/proc/inkstone/run")),
    ):
        pass
