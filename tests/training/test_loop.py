"""Splits of a step are equal, runs resume to the bit, bad steps change nothing."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.checkpoint import load_model
from inkstone.corpora.batches import Batch
from inkstone.errors import CheckpointError, RunError, TrainingError
from inkstone.tasks import language_modeling
from inkstone.training import state as states
from inkstone.training.log import Hook, StepInfo, read_log
from inkstone.training.loop import Trainer, TrainingInterrupted

Make = Callable[..., Trainer]


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for r in read_log(run / "log.jsonl") if r["kind"] == "step"]


class StopAt(Hook):
    """Sends a signal to this process at a step."""

    def __init__(self, step: int, signum: int = signal.SIGTERM) -> None:
        self.step, self.signum = step, signum

    def on_step(self, info: StepInfo) -> None:
        if info.step == self.step:
            os.kill(os.getpid(), self.signum)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_any_split_gives_the_same_loss_and_gradients(make_trainer: Make, optimizer: str) -> None:
    """Rows have unequal numbers of targets (document masking), which a mean of means gets wrong."""
    results = []
    for micro in (8, 3, 1):
        trainer = make_trainer(
            f"run-{micro}", micro_batch_size=micro, optimizer=optimizer, dropout=0
        )
        batch = next(trainer.stream)
        counts = (batch.targets != -100).sum(1)
        assert len(set(counts.tolist())) > 1
        loss = trainer._backward(batch, trainer._loss) / batch.n_targets
        grads = torch.cat([p.grad.flatten() for p in trainer.optimizers.parameters])
        results.append((float(loss), grads / batch.n_targets))
    for loss, grads in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        torch.testing.assert_close(grads, results[0][1], rtol=1e-4, atol=1e-7)


def test_training_learns_and_leaves_a_model(make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=60, eval_every=20)
    result = trainer.run()
    assert result.step == 60 and result.reason == "finished"
    first, last = losses(trainer.run_folder)[0][1], losses(trainer.run_folder)[-1][1]
    assert last < 0.7 * first
    model, _, _ = load_model(result.checkpoint)
    assert sum(p.numel() for p in model.parameters()) > 0
    assert json.loads((trainer.run_folder / "best.json").read_text())["step"] == result.best_step


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(("optimizer", "sampled"), [("muon", 0), ("adamw", 0), ("muon", 35)])
def test_a_signal_leaves_a_checkpoint_that_continues_to_the_bit(
    make_trainer: Make, signum: int, optimizer: str, sampled: int
) -> None:
    settings = {"optimizer": optimizer, "sampled_words": sampled}
    whole = make_trainer("whole", **settings)
    whole.run()
    broken = make_trainer("broken", **settings, hooks=[StopAt(13, signum)])
    with pytest.raises(TrainingInterrupted) as caught:
        broken.run()
    assert caught.value.signum == signum and caught.value.step == 13
    again = make_trainer("broken", **settings)
    again.run()
    assert same(weights(whole), weights(again))
    assert losses(whole.run_folder) == losses(again.run_folder)


def test_minutes_end_on_time_and_resume_repeats_the_decision(make_trainer: Make) -> None:
    settings: dict[str, Any] = {"max_steps": None, "minutes": 0.05, "save_every": 10}
    trainer = make_trainer(**settings)
    result = trainer.run()
    assert 0.5 * 3 < result.elapsed_s < 3 + 1.5
    rows = [r for r in read_log(trainer.run_folder / "log.jsonl") if r["kind"] == "step"]
    rates = [r["lr"] / trainer.config.lr for r in rows]
    assert rates[-1] < 0.2 < rates[len(rows) // 4]
    plan = json.loads((trainer.run_folder / "schedule.json").read_text())
    assert plan["legs"][-1]["end"] == result.step
    before = weights(trainer)
    for folder in states.checkpoints(trainer.run_folder)[-1:]:
        states.shutil.rmtree(folder)
    again = make_trainer(**settings)
    assert again.run().step == result.step
    assert same(before, weights(again))


def test_a_finished_run_resumed_changes_nothing(make_trainer: Make) -> None:
    first = make_trainer()
    first.run()
    again = make_trainer()
    assert again.run().step == 30
    assert same(weights(first), weights(again))


def test_a_damaged_checkpoint_is_named_and_the_previous_used(make_trainer: Make) -> None:
    whole = make_trainer("whole", save_every=10, keep_checkpoints=3)
    whole.run()
    victim = make_trainer("victim", save_every=10, keep_checkpoints=3)
    victim.run()
    newest = states.checkpoints(victim.run_folder)[-1]
    path = newest / "training" / "optimizer.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    messages: list[str] = []

    class Listen(Hook):
        def on_message(self, text: str) -> None:
            messages.append(text)

    again = make_trainer("victim", save_every=10, keep_checkpoints=3, hooks=[Listen()])
    again.run()
    assert any(newest.name in m and "optimizer.safetensors" in m for m in messages)
    assert same(weights(whole), weights(again))


def test_all_checkpoints_damaged_is_an_error(make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=5)
    trainer.run()
    for folder in states.checkpoints(trainer.run_folder):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        make_trainer(max_steps=5).run()


def test_changed_data_is_refused(make_trainer: Make) -> None:
    make_trainer(max_steps=5, fingerprint={"corpus": "one"}).run()
    with pytest.raises(RunError, match="corpus: one then, two now"):
        make_trainer(max_steps=5, fingerprint={"corpus": "two"}).run()


def test_a_second_trainer_is_refused(make_trainer: Make) -> None:
    from inkstone.training.lock import run_lock

    trainer = make_trainer()
    with run_lock(trainer.run_folder), pytest.raises(RunError, match=f"pid {os.getpid()}"):
        trainer.run()


class Poison:
    """The loss is not a number at the given calls."""

    def __init__(self, *calls: int, value: float = math.nan) -> None:
        self.calls, self.value, self.count = set(calls), value, 0

    def __call__(self, model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
        loss, count = language_modeling.loss(model, batch)
        self.count += 1
        return (loss * self.value if self.count in self.calls else loss), count


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(make_trainer: Make, value: float) -> None:
    trainer = make_trainer(max_steps=10, loss=Poison(5, 6, value=value))
    trainer.run()
    assert trainer.state.step == 10 and trainer.state.skipped == 1
    assert all(torch.isfinite(v).all() for v in weights(trainer).values())


def test_nan_policy_stop_and_ten_in_a_row(make_trainer: Make) -> None:
    with pytest.raises(TrainingError, match="cannot go on"):
        make_trainer("a", nan_policy="stop", loss=Poison(5)).run()
    with pytest.raises(TrainingError, match="cannot go on"):
        make_trainer("b", loss=Poison(*range(7, 100))).run()
    assert all(torch.isfinite(v).all() for v in weights(make_trainer("c")).values())


def test_a_batch_without_targets_is_passed_over(make_trainer: Make) -> None:
    trainer = make_trainer(max_steps=3)
    real = trainer.stream.__class__.__next__
    calls = []

    class Gaps(trainer.stream.__class__):  # type: ignore[name-defined, misc]
        def __next__(self) -> Batch:
            batch = real(self)
            calls.append(1)
            return (
                Batch(batch.input_ids, torch.full_like(batch.targets, -100))
                if (len(calls) % 2)
                else batch
            )

    trainer.stream.__class__ = Gaps
    trainer.run()
    assert trainer.state.step == 3 and len(calls) == 6


def test_early_stop_keeps_the_best(make_trainer: Make) -> None:
    trainer = make_trainer(
        max_steps=400, eval_every=5, early_stop_patience=3, lr=1.0, matrix_lr=1.0
    )
    result = trainer.run()
    assert result.reason == "early stop" and result.step < 400
    assert result.checkpoint.exists() and result.best_step <= result.step - 15


@pytest.mark.parametrize(("margin", "chosen"), [(0.0, 10), (0.02, 25), (0.04, 30), (1.0, 30)])
def test_of_scores_that_count_as_equal_the_last_is_best(
    make_trainer: Make, margin: float, chosen: int
) -> None:
    """Measured from the best score of all, so that small losses never add up."""
    found = iter([0.80, 0.90, 0.88, 0.84, 0.89, 0.87])
    trainer = make_trainer(max_steps=30, eval_every=5)
    trainer.evaluate = lambda: {"nats_per_token": 1.0, "accuracy": next(found), "error": margin}
    trainer.best_by, trainer.higher_is_better, trainer.margin_by = "accuracy", True, "error"
    result = trainer.run()
    assert result.best_step == chosen and trainer.state.top_score == 0.90
    assert trainer.state.stale_evals == 4 and result.checkpoint.name == f"step-{chosen:08d}"


def test_a_full_log_disk_does_not_stop_training(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    import builtins

    real = builtins.open
    messages: list[str] = []

    class Listen(Hook):
        def on_message(self, text: str) -> None:
            messages.append(text)

    def full(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("log.jsonl") and "a" in mode:
            raise OSError(28, "No space left on device")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", full)
    trainer = make_trainer(max_steps=5, hooks=[Listen()])
    trainer.run()
    assert trainer.state.step == 5 and any("No space left" in m for m in messages)


def test_a_full_disk_leaves_the_last_checkpoint(
    make_trainer: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(save_every=10)
    real = trainer.save_model

    def full(folder: Path) -> None:
        if trainer.state.step >= 20:
            raise OSError(28, "No space left on device")
        real(folder)

    trainer.save_model = full
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.run()
    assert [p.name for p in states.checkpoints(trainer.run_folder)] == ["step-00000010"]
    whole, again = make_trainer("whole"), make_trainer(save_every=10)
    whole.run()
    again.run()
    assert same(weights(whole), weights(again))
