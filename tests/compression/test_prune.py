"""compression/prune.py: zeros, exactly as many as wanted, that stay through training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.compression.prune import Pruner, choose, mask, prune, share_at, zeros
from inkstone.compression.quantize import choose as choose_bits
from inkstone.compression.quantize import quantize_model
from inkstone.errors import ModelError, UsageError
from inkstone.models import bert, gpt2, llama, lstm
from inkstone.nn.linear import Linear

MODELS = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "llama": (llama, {"n_heads": 4, "tied_head": False}),
    "lstm": (lstm, {"hidden_size": 32}),
    "bert": (bert, {"n_heads": 4, "head": "sequence", "n_labels": 3}),
}


def _model(name: str, **shape: Any) -> Any:
    torch.manual_seed(0)
    family, own = MODELS[name]
    shape = {"vocab_size": 50, "max_seq_len": 16, "d_model": 32, "n_layers": 2} | own | shape
    return family.Model(family.Config(**shape))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(0, 1), st.integers(0, 1 << 20))
def test_the_lowest_go_and_exactly_so_many(rows: int, width: int, share: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 6, (rows, width), generator=chance).float()  # with many equal ones
    stays = mask(scores, share, "magnitude")
    assert int((~stays).sum()) == round(share * scores.numel())
    if 0 < int(stays.sum()) < scores.numel():
        assert scores[stays].min() >= scores[~stays].max()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 1 << 20))
def test_two_of_every_four_inputs_stay(rows: int, groups: int, seed: int) -> None:
    scores = torch.randint(0, 3, (rows, 4 * groups), generator=torch.Generator().manual_seed(seed))
    stays = mask(scores.float(), 0.5, "2:4").unflatten(1, (-1, 4))
    assert (stays.sum(2) == 2).all()
    fours = scores.unflatten(1, (-1, 4))
    low, high = fours.masked_fill(~stays, 9).amin(2), fours.masked_fill(stays, -9).amax(2)
    assert (low >= high).all()


@pytest.mark.parametrize("name", list(MODELS))
def test_maps_get_zeros_and_nothing_else(name: str) -> None:
    model = _model(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    choice = choose(model, "magnitude")
    prune(model, choice.pruned, 0.3, "magnitude")
    for n, p in model.named_parameters():
        if n.removesuffix(".weight") in choice.pruned:
            kept = p != 0
            assert int((~kept).sum()) == round(0.3 * p.numel())
            assert torch.equal(p[kept], before[n][kept])
            assert before[n][kept].abs().min() >= before[n][~kept].abs().max()
        else:
            assert torch.equal(p, before[n])
    assert not {"embed", "position", "head", "classifier"} & set(choice.pruned)
    assert zeros(model, choice.pruned) == pytest.approx(0.3, abs=1e-3)
    assert zeros(model) < zeros(model, choice.pruned)


def test_parts_can_be_kept() -> None:
    model = _model("gpt2", d_model=30, n_heads=3, d_ff=32)
    choice = choose(model, "2:4", ["blocks.0"])
    assert choice.pruned == ("blocks.1.down",)
    assert choice.kept["blocks.0.q"] == "asked for"
    assert choice.kept["blocks.1.q"] == "rows of 30, which 4 does not divide"
    with pytest.raises(UsageError, match="nothing is called"):
        choose(model, "magnitude", ["nose"])
    with pytest.raises(ModelError, match="no maps"):
        choose(model, "2:4", ["down"])


def test_rounded_weights_are_not_pruned() -> None:
    small = quantize_model(_model("gpt2"), choose_bits(_model("gpt2"), 8))
    with pytest.raises(ModelError, match="rounded already"):
        choose(small, "magnitude")


def test_zeros_come_by_a_cube() -> None:
    """Zhu & Gupta 2017, equation 1, with t from 0.1 to 0.6."""
    assert share_at(0.0, 0.8) == share_at(0.1, 0.8) == 0
    assert share_at(0.35, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))
    assert share_at(0.6, 0.8) == share_at(1.0, 0.8) == pytest.approx(0.8)


def _train(model: Any, pruner: Pruner, steps: int = 20, lr: float = 0.05) -> list[list[Any]]:
    """Steps on one text; gives the zeros of every map after each."""
    ids = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    found = []
    for step in range(steps):
        loss = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        (7 * loss).backward()
        pruner.on_gradients(7)
        optimizer.step()
        pruner.on_update((step + 1) / steps)
        found.append(
            [(model.get_submodule(n).weight == 0) for n in choose(model, pruner.by).pruned]
        )
    return found


@pytest.mark.parametrize("by", ["magnitude", "movement", "2:4"])
def test_zeros_stay_while_all_else_learns(by: Any) -> None:
    model = _model("gpt2")
    names = choose(model, by).pruned
    pruner = Pruner(model, names, 0.5, by)
    before = [model.get_submodule(n).weight.detach().clone() for n in names]
    found = _train(model, pruner)
    counts = [sum(int(z.sum()) for z in step) for step in found]
    total = sum(w.numel() for w in before)
    assert pruner.finished and counts == sorted(counts) and counts[-1] == total // 2
    if by == "2:4":
        assert counts[0] == counts[-1]
    else:
        assert counts[0] < 0.2 * total < counts[8]
    last = [torch.equal(a, b) for a, b in zip(found[12], found[-1], strict=True)]
    assert all(last)  # from 0.6 of the training on the mask is what it is
    for weight, n, zero in zip(before, names, found[-1], strict=True):
        now = model.get_submodule(n).weight
        assert not (now[~zero] == weight[~zero]).any()


def test_movement_scores_by_the_gradient_of_the_weight_that_is_used() -> None:
    """−Σ w · ∂L/∂w over steps, of a weight that is cut off as it was when it was (section 4)."""
    model = torch.nn.Module()
    model.map = Linear(4, 2)  # type: ignore[assignment]
    weight = model.map.weight  # type: ignore[union-attr]
    weight.data.copy_(torch.arange(1.0, 9.0).view(2, 4))
    pruner = Pruner(model, ["map"], 0.5, "movement")
    scores, whole, stays = torch.zeros(2, 4), weight.detach().clone(), torch.ones(2, 4).bool()
    chance = torch.Generator().manual_seed(0)
    for step in range(4):
        gradient = torch.randn(2, 4, generator=chance)
        weight.grad = 5 * gradient.clone()
        pruner.on_gradients(5)
        scores -= whole * gradient
        assert torch.equal(weight.grad, 5 * gradient * stays)
        with torch.no_grad():
            weight -= 0.1 * weight.grad
        pruner.on_update(0.25 * (step + 1))
        whole = torch.where(stays, whole - 0.5 * gradient, whole)
        wanted = share_at(0.25 * (step + 1), 0.5)
        if not torch.equal(stays, torch.ones(2, 4).bool()) or wanted:
            stays = mask(scores, wanted, "movement") if step < 3 else stays
        assert torch.allclose(weight, whole * stays, atol=1e-6)
        assert torch.allclose(pruner.scores["map"], scores, atol=1e-5)


def test_a_weight_may_come_back() -> None:
    """What is cut off early is remembered; what shrinks below it takes its place."""
    model = torch.nn.Module()
    model.map = Linear(4, 1)  # type: ignore[assignment]
    weight = model.map.weight  # type: ignore[union-attr]
    weight.data.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    pruner = Pruner(model, ["map"], 0.25, "magnitude")
    pruner.on_update(0.3)  # a share of 0.2 of four: one
    assert weight.tolist() == [[0.0, 2.0, 3.0, 4.0]]
    weight.data[0, 1] = 0.5
    pruner.on_update(0.6)
    assert weight.tolist() == [[1.0, 0.0, 3.0, 4.0]]
