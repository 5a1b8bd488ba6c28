"""nn/loss.py: equal to the plain cross-entropy, and never the whole logits tensor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn import loss as module
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy, sampled_cross_entropy


def _inputs(n: int = 23, d: int = 8, v: int = 37, ignored: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n + v)
    hidden = torch.randn(n, d, generator=generator, requires_grad=True)
    weight = torch.randn(v, d, generator=generator, requires_grad=True)
    bias = torch.randn(v, generator=generator, requires_grad=True)
    targets = torch.randint(0, v, (n,), generator=generator)
    targets[:ignored] = IGNORE_INDEX
    return hidden, weight, bias, targets


@pytest.mark.parametrize("chunk", [1, 7, 23, 1000, None])
@pytest.mark.parametrize("ignored", [0, 5])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_plain_cross_entropy_with_gradients(
    chunk: int | None, ignored: int, with_bias: bool, smoothing: float
) -> None:
    hidden, weight, bias, targets = _inputs(ignored=ignored)
    leaves = [hidden, weight, bias] if with_bias else [hidden, weight]
    plain = F.linear(hidden, weight, bias if with_bias else None)
    reference = F.cross_entropy(
        plain, targets, reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=smoothing
    )
    expected = torch.autograd.grad(reference * 0.3, leaves)

    total, count = chunked_cross_entropy(
        hidden, weight, targets, bias=bias if with_bias else None, chunk=chunk,
        label_smoothing=smoothing,
    )  # fmt: skip
    found = torch.autograd.grad(total * 0.3, leaves)
    assert count == 23 - ignored and total.dtype == torch.float32
    torch.testing.assert_close(total, reference, rtol=1e-6, atol=1e-6)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_agree_with_finite_differences() -> None:
    hidden, weight, _, targets = _inputs(5, 3, 7)
    total, _ = chunked_cross_entropy(hidden, weight, targets, chunk=2, z_loss=0.1)
    d_hidden, d_weight = torch.autograd.grad(total, (hidden, weight))

    def exact(h: Tensor, w: Tensor) -> float:
        logits = h.double() @ w.double().T
        log_z = logits.logsumexp(1)
        each = log_z - logits.gather(1, targets[:, None])[:, 0] + 0.1 * log_z.square()
        return float(each.sum().detach())

    for leaf, gradient in ((hidden, d_hidden), (weight, d_weight)):
        for i in range(leaf.numel()):
            step = torch.zeros(leaf.numel(), dtype=torch.float64)
            step[i] = 1e-5
            step = step.view_as(leaf)
            pair = [
                exact(hidden + s, weight) if leaf is hidden else exact(hidden, weight + s)
                for s in (step, -step)
            ]
            slope = (pair[0] - pair[1]) / 2e-5
            assert abs(float(gradient.flatten()[i]) - slope) < 1e-4


def test_never_holds_more_logits_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, _, targets = _inputs(64, 8, 700)
    seen = []
    real = module._score

    def spy(scores: Tensor, *args: object, **kwargs: object) -> Tensor:
        seen.append(scores.shape)
        return real(scores, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_score", spy)
    monkeypatch.setitem(module.CHUNK_BYTES, "cpu", 16 * 700 * 4)
    chunked_cross_entropy(hidden, weight, targets)
    assert seen == [(16, 700)] * 4


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_words_of_probability_0_change_nothing(with_bias: bool, z_loss: float) -> None:
    """What is done on a GPU, where products of odd widths are slow."""
    hidden, weight, bias, targets = _inputs(23, 8, 101)
    given = bias if with_bias else None
    leaves = [hidden, weight, *([bias] if with_bias else [])]
    found = []
    for wide, shift in ((weight, given), module._with_unlikely_words(weight, given)):
        total, _ = chunked_cross_entropy(hidden, wide, targets, bias=shift, z_loss=z_loss)
        found.append([total, *torch.autograd.grad(total, leaves)])
    assert len(wide) == 128
    for plain, padded in zip(*found, strict=True):
        torch.testing.assert_close(padded, plain)


@pytest.mark.parametrize("scale", [1.0, 50.0, 1e4])
def test_large_logits_stay_finite(scale: float) -> None:
    hidden, weight, _, targets = _inputs()
    big = (hidden.detach() * scale).requires_grad_()
    total, _ = chunked_cross_entropy(big, weight, targets, chunk=4)
    reference = F.cross_entropy(big @ weight.T, targets, reduction="sum")
    torch.testing.assert_close(total, reference, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(torch.autograd.grad(total, big)[0]).all()


def test_without_gradients_none_are_made() -> None:
    hidden, weight, _, targets = _inputs()
    with torch.no_grad():
        total, _ = chunked_cross_entropy(hidden, weight, targets, chunk=5)
    assert not total.requires_grad
    frozen = weight.detach()
    total, _ = chunked_cross_entropy(hidden, frozen, targets)
    (gradient,) = torch.autograd.grad(total, hidden)
    assert gradient.shape == hidden.shape


def test_all_targets_ignored_is_zero_loss_and_zero_gradient() -> None:
    hidden, weight, _, targets = _inputs(ignored=23)
    total, count = chunked_cross_entropy(hidden, weight, targets)
    total.backward()
    assert count == 0 and float(total) == 0.0
    assert not hidden.grad.any() and not weight.grad.any()  # type: ignore[union-attr]


def test_bf16_hidden_gives_fp32_weight_gradients_close_to_exact() -> None:
    hidden, weight, _, targets = _inputs(64, 32, 101)
    reference = F.cross_entropy(hidden @ weight.T, targets, reduction="sum")
    expected = torch.autograd.grad(reference, (hidden, weight))
    low = hidden.detach().bfloat16().requires_grad_()
    total, _ = chunked_cross_entropy(low, weight, targets, chunk=16)
    found = torch.autograd.grad(total, (low, weight))
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == torch.float32
    assert abs(float(total - reference)) < 0.01 * float(reference)
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine.float() - theirs).norm() / theirs.norm()
        assert error < 0.02


def test_memory_that_was_never_written_is_not_read() -> None:
    """Kernels for AMX read a row of bf16 scores to the end of its tile: it must hold no NaN."""
    hidden = torch.randn(100, 64).bfloat16().requires_grad_()
    weight, targets = torch.randn(365, 64, requires_grad=True), torch.arange(100)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        total, _ = chunked_cross_entropy(hidden, weight, targets)
    finally:
        torch.use_deterministic_algorithms(False)
    gradients = torch.autograd.grad(total, (hidden, weight))
    assert all(g.isfinite().all() for g in (total, *gradients))


def test_a_second_backward_pass_is_refused() -> None:
    hidden, weight, _, targets = _inputs()
    total, _ = chunked_cross_entropy(hidden, weight, targets)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        total.backward()


def test_sampled_words_stand_for_all_on_average() -> None:
    hidden, weight, _, targets = _inputs(n=3, v=200, ignored=1)
    exact = F.cross_entropy(
        hidden @ weight.T, targets, reduction="none", ignore_index=IGNORE_INDEX
    )[1:].exp()  # Z over exp of the target's score
    torch.manual_seed(0)
    drawn = []
    for _ in range(400):
        each = [sampled_cross_entropy(hidden[[i]], weight, targets[[i]], 50)[0] for i in (1, 2)]
        drawn.append(torch.stack(each).detach().exp())
    estimates = torch.stack(drawn)
    error = estimates.std(0) / len(drawn) ** 0.5
    assert (estimates.std(0) > 0).all()
    assert ((estimates.mean(0) - exact).abs() < 4 * error).all()


def test_the_gradient_of_sampled_words_is_that_of_their_softmax() -> None:
    hidden, weight, _, targets = _inputs(v=200, ignored=4)
    total, count = sampled_cross_entropy(hidden, weight, targets, 64)
    found = torch.autograd.grad(total, (hidden, weight))
    scored = found[1].any(1).nonzero().squeeze(1)
    known = targets[4:].unique()
    assert count == 19 and len(scored) == 64 and torch.isin(known, scored).all()
    others = torch.isin(scored, known, invert=True)
    share = torch.where(others, (200 - len(known)) / others.sum(), 1.0).log()
    at = torch.searchsorted(scored, targets[4:])
    reference = F.cross_entropy(hidden[4:] @ weight[scored].T + share, at, reduction="sum")
    torch.testing.assert_close(total, reference)
    for mine, theirs in zip(found, torch.autograd.grad(reference, (hidden, weight)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("words", "scored"), [(200, 200), (1000, 200), (8, 24), (24, 24)])
def test_sampled_words_are_as_many_as_asked_or_all(words: int, scored: int) -> None:
    hidden, weight, _, _ = _inputs(n=17, v=200)
    total, _ = sampled_cross_entropy(hidden, weight, torch.arange(17), words)
    (gradient,) = torch.autograd.grad(total, weight)
    assert int(gradient.any(1).sum()) == scored
    if scored == 200:
        torch.testing.assert_close(
            total, chunked_cross_entropy(hidden, weight, torch.arange(17))[0]
        )


def test_sampled_words_without_a_target() -> None:
    hidden, weight, _, targets = _inputs(ignored=23)
    total, count = sampled_cross_entropy(hidden, weight, targets, 8)
    total.backward()
    assert count == 0 and float(total.detach()) == 0.0
    assert weight.grad is not None and not weight.grad.any()
