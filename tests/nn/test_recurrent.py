"""Recurrent layers: equal to torch's, by both kernels, whatever the lengths and directions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inkstone.models import lstm
from inkstone.nn import compiled, native, recurrent
from inkstone.nn.linear import Embedding
from inkstone.nn.recurrent import (
    GRU,
    LSTM,
    RNN,
    Cell,
    Stack,
    activation_loss,
    embedding_dropout,
    locked_dropout,
)
from inkstone.nn.steps import Steps

THEIRS = {RNN: nn.RNN, LSTM: nn.LSTM, GRU: nn.GRU}
LENGTHS = ([7] * 5, [3, 9, 1, 9, 4] * 7, [12] * 40)
cells = pytest.mark.parametrize("cell", [RNN, LSTM, GRU])
needs_compiler = pytest.mark.skipif(
    not compiled.fits(torch.float32, torch.device("cpu"), 32), reason="no C++ compiler"
)


@pytest.fixture(params=["torch", pytest.param("compiled", marks=needs_compiler)])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setattr(recurrent, "WORTH_IT", 0 if name == "compiled" else 1 << 60)
    return name


def _like_torch(stack: Stack, theirs: nn.RNNBase) -> None:
    """Give torch's network our weights; it has two biases where we have one."""
    with torch.no_grad():
        for i, cell in enumerate(stack.cells):
            assert isinstance(cell, Cell) and cell.x.bias is not None
            cell.x.bias.normal_()
            layer, backwards = divmod(i, stack.directions)
            end = f"l{layer}{'_reverse' if backwards else ''}"
            getattr(theirs, f"weight_ih_{end}").copy_(cell.x.weight)
            getattr(theirs, f"weight_hh_{end}").copy_(cell.h.weight)
            getattr(theirs, f"bias_ih_{end}").copy_(cell.x.bias)
            if cell.h.bias is None:
                getattr(theirs, f"bias_hh_{end}").zero_()
            else:
                getattr(theirs, f"bias_hh_{end}").copy_(cell.h.bias.normal_())


@cells
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("lengths", LENGTHS, ids=len)
def test_equal_to_torch(cell: type[Cell], directions: int, lengths: list[int], kernel: str) -> None:
    torch.manual_seed(0)
    batch, width, size = len(lengths), 24, 96
    stack = Stack(cell, width, [size, size], directions=directions)
    theirs = THEIRS[cell](width, size, 2, batch_first=True, bidirectional=directions == 2)
    _like_torch(stack, theirs)
    x = torch.randn(batch, max(lengths), width, requires_grad=True)
    states = [
        tuple(torch.randn(batch, size) for _ in range(cell.PARTS)) for _ in range(2 * directions)
    ]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    steps = Steps.of(mask, mask)
    out, ends = stack(steps.pack(x), steps, states)
    ours = [steps.unpack(out), *(torch.stack(parts) for parts in zip(*ends, strict=True))]

    start: Any = tuple(torch.stack(parts) for parts in zip(*states, strict=True))
    packed = nn.utils.rnn.pack_padded_sequence(
        x, torch.tensor(lengths), batch_first=True, enforce_sorted=False
    )
    other, last = theirs(packed, start if cell is LSTM else start[0])
    other, _ = nn.utils.rnn.pad_packed_sequence(other, batch_first=True)
    expected = [other, *(last if cell is LSTM else [last])]
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)

    factors = [torch.randn_like(b) for b in expected]
    loss = sum(((a * f).sum() for a, f in zip(ours, factors, strict=True)), torch.zeros(()))
    check = sum(((b * f).sum() for b, f in zip(expected, factors, strict=True)), torch.zeros(()))
    weights = [w for c in stack.cells for w in (c.x.weight, c.h.weight, c.x.bias)]
    names = [n for n in dict(theirs.named_parameters()) if "bias_hh" not in n]
    order = {"weight_ih": 0, "weight_hh": 1, "bias_ih": 2}
    names.sort(key=lambda n: ("_l1" in n, "reverse" in n, order["_".join(n.split("_")[:2])]))
    gradients = torch.autograd.grad(loss, [x, *weights])
    wanted = torch.autograd.grad(check, [x, *(theirs.get_parameter(n) for n in names)])
    for g, w in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-4)


@needs_compiler
@cells
@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_of_states_and_inner_biases(
    cell: type[Cell], reverse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    mask = torch.arange(6) < torch.tensor([2, 6, 0, 3, 6])[:, None]
    steps = Steps.of(mask, mask)
    stack = Stack(cell, 8, [32], directions=2)
    states = [
        tuple(torch.randn(5, 32, requires_grad=True) for _ in range(cell.PARTS)) for _ in range(2)
    ]
    x = torch.randn(steps.n_tokens, 8)
    leaves = [part for state in states for part in state]
    leaves += [c.h.bias for c in stack.cells if c.h.bias is not None]
    found = []
    for worth in (0, 1 << 60):
        monkeypatch.setattr(recurrent, "WORTH_IT", worth)
        _, ends = stack(x, steps, states)
        loss = torch.stack([(part * (1 + part)).sum() for part in ends[int(reverse)]]).sum()
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    not compiled.fits(torch.bfloat16, torch.device("cpu"), 32), reason="no bf16 tiles"
)
@cells
def test_bf16_is_near_fp32(cell: type[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(recurrent, "WORTH_IT", 0)
    steps = Steps.of(torch.zeros(37, 20))
    stack, x = Stack(cell, 32, [96]), torch.randn(steps.n_tokens, 32)
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        out, _ = stack(x.to(dtype), steps)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out.float().square().sum(), list(stack.parameters()))
        found.append([out.float(), *gradients])
    for exact, low in zip(*found, strict=True):
        assert (exact - low).abs().max() < 0.03 * exact.abs().max()


@cells
def test_a_step_is_the_formula(cell: type[Cell], kernel: str) -> None:
    torch.manual_seed(0)
    stack, x = Stack(cell, 8, [32, 32]), torch.randn(3, 7, 8)
    steps = Steps.of(x[..., 0])
    out, ends = stack(steps.pack(x), steps)
    states, outs = stack.start(3, x), []
    for t in range(7):
        y, states = stack.step(x[:, t], states)
        outs.append(y)
    torch.testing.assert_close(steps.unpack(out), torch.stack(outs, 1), rtol=1e-5, atol=1e-6)
    for a, b in zip(ends, states, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@needs_compiler
def test_a_number_that_is_none_stays_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "WORTH_IT", 0)
    stack, x = Stack(LSTM, 4, [32]), torch.randn(2 * 3, 4)
    x[1] = float("nan")  # second row, first step
    steps = Steps.of(torch.zeros(2, 3))
    out = steps.unpack(stack(x, steps)[0])
    assert out[1].isnan().all() and not out[0].isnan().any()


@needs_compiler
def test_gradients_can_be_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurrent, "WORTH_IT", 0)
    stack = Stack(RNN, 4, [32])
    loss = stack(torch.randn(6, 4), Steps.of(torch.zeros(2, 3)))[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        loss.backward()


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INKSTONE_COMPILE", "0")
    assert native.library.__wrapped__("recurrence") is None


# --- the AWD-LSTM's regularisers -----------------------------------------------------------------


def _ragged() -> Steps:
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    return Steps.of(mask, mask)


@pytest.mark.parametrize("steps", [Steps.of(torch.zeros(3, 4)), _ragged()], ids=["full", "ragged"])
def test_locked_dropout_hides_the_same_at_every_step(steps: Steps) -> None:
    torch.manual_seed(0)
    x = torch.ones(steps.n_tokens, 64)
    out = locked_dropout(x, steps, 0.5, training=True)
    for row in range(3):
        tokens = out[steps.rows == row]
        assert torch.equal(tokens, tokens[:1].expand_as(tokens))
    first = out[: steps.n_sequences]
    assert not torch.equal(first[0], first[1]) and 0.2 < (first == 0).float().mean() < 0.8
    assert set(out.unique().tolist()) == {0.0, 2.0}
    assert locked_dropout(x, steps, 0.5, training=False) is x


def test_embedding_dropout_hides_whole_words() -> None:
    torch.manual_seed(0)
    table = Embedding(50, 4)
    nn.init.ones_(table.weight)
    ids = torch.arange(50).repeat(2)
    out = embedding_dropout(table, ids, torch.float32, 0.5, training=True)
    assert torch.equal(out[:50], out[50:]) and torch.equal(out, out[:, :1].expand_as(out))
    assert 10 < int((out[:50, 0] == 0).sum()) < 40


def test_weight_drop_is_one_draw_for_all_steps() -> None:
    torch.manual_seed(0)
    cell = LSTM(4, 32, weight_drop=0.5)
    dropped = cell.recurrent_weight()
    kept = dropped != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], 2 * cell.h.weight[kept])
    assert cell.eval().recurrent_weight() is cell.h.weight


def test_activation_loss_is_the_papers() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
    steps, raw, dropped = _ragged(), torch.randn(3, 3, 5), torch.randn(3, 3, 5)
    found = activation_loss(steps.pack(dropped), steps.pack(raw), steps, 2.0, 3.0)
    real = mask.bool()
    pairs = real[:, 1:]
    expected = 2 * dropped[real].square().mean()
    expected = expected + 3 * (raw[:, 1:] - raw[:, :-1])[pairs].square().mean()
    torch.testing.assert_close(found, expected)


def test_regularisers_act_in_training_only() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 20, "d_model": 32, "n_layers": 2}
    rates = {"dropout": 0.3, "input_dropout": 0.3, "hidden_dropout": 0.3, "embed_dropout": 0.3,
             "weight_drop": 0.3, "ar": 2.0, "tar": 1.0}  # fmt: skip
    plain = lstm.Model(lstm.Config(**shape))
    model = lstm.Model(lstm.Config(**shape, **rates))
    model.load_state_dict(copy.deepcopy(plain.state_dict()))
    ids: Tensor = torch.randint(0, 20, (3, 9))
    assert torch.equal(model.eval()(ids), plain(ids)) and model.extra_loss() is None
    first, second = model.train()(ids), model(ids)
    assert not torch.equal(first, second)
    extra = model.extra_loss()
    assert extra is not None and extra > 0
