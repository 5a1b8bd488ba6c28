"""Training where there is a GPU: exact, resumable, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.training.loop import Trainer
from tests.training.conftest import tiny_trainer
from tests.training.test_loop import StopAt, losses, same, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Trainer]:
    return lambda *args, **settings: tiny_trainer(tmp_path, *args, device="cuda", **settings)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_a_stopped_run_goes_on_to_the_bit(make: Any, optimizer: str) -> None:
    from inkstone.training.loop import TrainingInterrupted

    whole = make("whole", optimizer=optimizer)
    whole.run()
    with pytest.raises(TrainingInterrupted):
        make("cut", optimizer=optimizer, hooks=[StopAt(11)]).run()
    rest = make("cut", optimizer=optimizer)
    rest.run()
    assert same(weights(whole), weights(rest))
    assert losses(whole.run_folder) == losses(rest.run_folder)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_course_is_that_of_the_cpu(make: Any, tmp_path: Path, optimizer: str) -> None:
    settings: dict[str, Any] = {"optimizer": optimizer, "dropout": 0.0, "max_steps": 10}
    runs = [make("there", **settings), tiny_trainer(tmp_path, "here", **settings)]
    for trainer in runs:
        trainer.run()
    there, here = (dict(losses(trainer.run_folder)) for trainer in runs)
    for step, loss in here.items():
        assert there[step] == pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_steps_give_the_same_course(make: Any, dtype: torch.dtype) -> None:
    found = []
    for name, compiled in (("plain", False), ("compiled", True)):
        trainer = make(name, compile=compiled, dropout=0.0, max_steps=8)
        trainer.model.compute_dtype = dtype
        trainer.run()
        found.append([loss for _, loss in losses(trainer.run_folder)])
    assert found[1] == pytest.approx(found[0], rel=1e-3 if dtype == torch.float32 else 2e-2)
