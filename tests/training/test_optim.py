"""Optimizers against references, schedules against their formulas."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import CheckpointError
from inkstone.models import gpt2, llama, lstm
from inkstone.training.config import TrainingConfig
from inkstone.training.optim import Muon, Optimizers, orthogonalise
from inkstone.training.plan import Plan
from inkstone.training.schedule import cosine, linear, progress, warm_up


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 4, 12), (2, 12, 4), (3, 5, 9)])
def test_orthogonalise_keeps_directions_and_evens_out_sizes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    out = orthogonalise(matrix)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    sizes = torch.linalg.svdvals(out)
    assert sizes.min() > 0.3 and sizes.max() < 1.3
    inner = (out * (u @ v)).sum((-2, -1)) / (out.norm(dim=(-2, -1)) * (u @ v).norm(dim=(-2, -1)))
    assert (inner > 0.9).all()


def test_muon_equals_its_textbook_step() -> None:
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.randn(6, 4))
    optimizer = Muon([p], lr=0.1, momentum=0.9, weight_decay=0.5)
    value, buffer = p.detach().clone(), torch.zeros(6, 4)
    for _ in range(3):
        grad = torch.randn(6, 4)
        p.grad = grad.clone()
        optimizer.step()
        buffer = 0.9 * buffer + 0.1 * grad
        direction = orthogonalise((0.1 * grad + 0.9 * buffer)[None])[0]
        value = value * (1 - 0.1 * 0.5) - 0.1 * math.sqrt(6 / 4) * direction
        torch.testing.assert_close(p.detach(), value, rtol=1e-5, atol=1e-6)


def test_muon_takes_the_gates_of_a_cell_one_by_one() -> None:
    torch.manual_seed(0)
    model = lstm.Model(lstm.Config(vocab_size=20, d_model=6, n_layers=2, hidden_size=8))
    settings_ = TrainingConfig(optimizer="muon", matrix_lr=0.1, weight_decay=0.0, max_steps=1)
    optimizers = Optimizers(model, settings_)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizers.step(1.0)
    for name in ("layers.cells.0.x.weight", "layers.cells.0.h.weight", "layers.cells.1.h.weight"):
        after = dict(model.named_parameters())[name]
        for gate, old, gradient in zip(
            after.chunk(4), before[name].chunk(4), gradients[name].chunk(4), strict=True
        ):
            scale = 0.1 * max(1.0, gate.shape[0] / gate.shape[1]) ** 0.5
            expected = old - scale * orthogonalise(gradient[None])[0]
            torch.testing.assert_close(gate.detach(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [gpt2, llama])
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_state_round_trip(family: object, optimizer: str) -> None:
    torch.manual_seed(0)
    config = family.Config(vocab_size=20, d_model=8, n_layers=1, n_heads=2, max_seq_len=8)  # type: ignore[attr-defined]
    settings_ = TrainingConfig(optimizer=optimizer, max_steps=5)  # type: ignore[arg-type]
    models = [family.Model(config) for _ in range(2)]  # type: ignore[attr-defined]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (Optimizers(m, settings_) for m in models)
    for step in range(4):
        for model in models[: 2 if step > 1 else 1]:
            torch.manual_seed(step)
            for p in model.parameters():
                p.grad = torch.randn_like(p)
        first.step(0.5)
        if step == 1:
            models[1].load_state_dict(models[0].state_dict())
            state = {name: tensor.clone() for name, tensor in first.state_tensors().items()}
            second.load_state_tensors(state)
        elif step > 1:
            second.step(0.5)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)


def test_foreign_state_is_refused() -> None:
    model = llama.Model(llama.Config(vocab_size=20, d_model=8, n_layers=1, n_heads=2))
    optimizers = Optimizers(model, TrainingConfig(max_steps=1))
    with pytest.raises(CheckpointError, match="belongs to no parameter"):
        optimizers.load_state_tensors({"no.such|momentum": torch.zeros(1)})


def test_only_matrices_decay() -> None:
    model = llama.Model(llama.Config(vocab_size=20, d_model=8, n_layers=1, n_heads=2))
    optimizers = Optimizers(model, TrainingConfig(max_steps=1, optimizer="adamw", weight_decay=0.3))
    decays = {
        name: g["weight_decay"]
        for g in optimizers.all[0].param_groups
        for p in g["params"]
        for name, q in model.named_parameters()
        if q is p
    }
    assert all((d > 0) == (model.get_parameter(n).dim() == 2) for n, d in decays.items())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 50), st.integers(60, 300), st.floats(0, 1), st.floats(0, 1))
def test_schedules_rise_and_fall(warmup: int, max_steps: int, low: float, at_start: float) -> None:
    rise = [warm_up(step, warmup) for step in range(max_steps)]
    assert all(b >= a for a, b in itertools.pairwise(rise))
    assert rise[0] == pytest.approx(1 / warmup) and rise[warmup - 1] == 1 == rise[-1]
    done = [
        progress(step, start=warmup, end=max_steps, at_start=at_start)
        for step in range(max_steps + 9)
    ]
    assert set(done[: warmup + 1]) == {at_start} and done[max_steps:] == [1.0] * 9
    for shape in (linear, cosine):
        fall = [shape(x, low) for x in done]
        assert all(b <= a + 1e-12 for a, b in itertools.pairwise(fall))
        assert fall[-1] == pytest.approx(low) and shape(0.0, low) == pytest.approx(1)


def _simulate(plan: Plan, seconds: list[float]) -> tuple[int, float]:
    """Run a plan against a made-up clock: steps taken, seconds used."""
    step, clock = 0, 0.0
    while True:
        if step:
            plan.update(step, clock, clock / step)
        if plan.max_steps is not None and step >= plan.max_steps:
            return step, clock
        plan.multiplier(step)
        clock += seconds[min(step, len(seconds) - 1)]
        step += 1


@settings(max_examples=40, deadline=None)
@given(st.floats(0.01, 3.0), st.floats(0.8, 1.25), st.sampled_from(["wsd", "cosine"]))
def test_minutes_are_kept_when_the_speed_drifts(
    tmp_path_factory: pytest.TempPathFactory, step_s: float, drift: float, schedule: str
) -> None:
    path = tmp_path_factory.mktemp("plan") / "schedule.json"
    config = TrainingConfig(minutes=2.0, warmup_steps=5, schedule=schedule)  # type: ignore[arg-type]
    speeds = [step_s] * int(60 / step_s) + [step_s * drift]
    _, clock = _simulate(Plan(config, path), speeds if schedule == "wsd" else [step_s])
    assert clock == pytest.approx(120, rel=0.12)


def test_decisions_survive_and_repeat(tmp_path: Path) -> None:
    config = TrainingConfig(minutes=1.0, warmup_steps=5)
    first = Plan(config, tmp_path / "schedule.json")
    steps, _ = _simulate(first, [0.1] * 300 + [0.12])
    second = Plan(config, tmp_path / "schedule.json")
    assert second.max_steps == steps
    assert [second.multiplier(s) for s in range(steps)] == [
        first.multiplier(s) for s in range(steps)
    ]


@settings(max_examples=50, deadline=None)
@given(d_model=st.integers(8, 4096), warmup=st.integers(1, 10_000), step=st.integers(0, 10**6))
def test_noam_is_equation_three(d_model: int, warmup: int, step: int) -> None:
    n = step + 1
    paper = d_model**-0.5 * min(n**-0.5, n * warmup**-1.5)
    config = TrainingConfig(max_steps=5, warmup_steps=warmup, schedule="noam")
    top = (d_model * warmup) ** -0.5
    assert top * Plan(config, Path("unused")).multiplier(step) == pytest.approx(paper, rel=1e-12)


def test_noam_ends_a_run_of_minutes(tmp_path: Path) -> None:
    config = TrainingConfig(minutes=2.0, warmup_steps=5, schedule="noam")
    plan = Plan(config, tmp_path / "schedule.json")
    steps, clock = _simulate(plan, [0.1])
    assert clock == pytest.approx(120, abs=1)
    assert plan.multiplier(4) == 1.0 and plan.multiplier(steps) < 0.1
