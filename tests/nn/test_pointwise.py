"""The compiled passes between matmuls give what torch gives, and torch stands in for them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inkstone.nn import native, pointwise
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.nn.norms import LayerNorm

compiled = pytest.mark.skipif(
    native.library("pointwise") is None, reason="there is no C++ compiler here"
)


@compiled
@pytest.mark.parametrize("words", [1000, 997, 8193])
@pytest.mark.parametrize(("z_loss", "smoothing"), [(0.0, 0.0), (1e-2, 0.1)])
def test_cross_entropy_is_the_formula(words: int, z_loss: float, smoothing: float) -> None:
    torch.manual_seed(0)
    room = torch.full((37, words + 40), float("nan")).bfloat16()
    scores = room[:, :words]
    scores.copy_(4 * torch.randn(37, words))
    exact = scores.double().requires_grad_()
    targets = torch.randint(0, words, (37,))
    targets[0], targets[1] = 0, words - 1
    log_z = exact.logsumexp(1)
    smooth = (1 - smoothing) * exact.gather(1, targets[:, None])[:, 0] + smoothing * exact.mean(1)
    expected = (log_z - smooth + z_loss * log_z.square()).sum()
    (gradient,) = torch.autograd.grad(expected, exact)
    facts = pointwise.cross_entropy(scores, targets, z_loss, smoothing, want_gradient=True)
    torch.testing.assert_close(facts[0].double(), log_z.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(facts[2].double(), exact.detach().mean(1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(scores.double(), gradient, rtol=2**-8, atol=1e-7)
    assert room[:, words:].isnan().all(), "wrote past its columns"


@compiled
def test_what_is_not_finite_stays_so() -> None:
    for bad in (float("nan"), float("inf")):
        scores = torch.randn(3, 2000).bfloat16()
        scores[1, 7] = bad
        log_z, at_target, _ = pointwise.cross_entropy(
            scores, torch.tensor([1, 2, 1999]), 0.0, 0.0, want_gradient=True
        )
        assert (log_z - at_target).isfinite().tolist() == [True, False, True]


@compiled
@pytest.mark.parametrize("shape", [(4096,), (3, 1367), (2, 5, 1001)])
def test_gelu_and_its_gradient(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(shape)).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    d_y = torch.randn(shape).bfloat16()
    y = pointwise.gelu(x)
    assert "Gelu" in type(y.grad_fn).__name__ and "Gelu" in str(y.grad_fn)
    expected = F.gelu(exact, approximate="tanh")
    (found,) = torch.autograd.grad(y, x, d_y)
    (right,) = torch.autograd.grad(expected, exact, d_y.double())
    torch.testing.assert_close(y.double(), expected, rtol=2**-8, atol=2**-14)
    torch.testing.assert_close(found.double(), right, rtol=2**-7, atol=2**-12)


@compiled
def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(200, 32).bfloat16().requires_grad_()
    weight, targets = torch.randn(777, 32, requires_grad=True), torch.randint(0, 777, (200,))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            scores = (hidden @ weight.bfloat16().T).detach()
            pointwise.cross_entropy(scores, targets, 0.0, 0.0, want_gradient=True)
            found.append(scores)
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])


@compiled
@pytest.mark.parametrize("rows", [(64,), (7, 90), (300, 200, 61)])
def test_narrow_is_the_cast_and_its_gradient(rows: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = [torch.randn(n, 601, requires_grad=True) for n in rows]
    expected = torch.cat([x.bfloat16() for x in matrices])
    d_out = torch.randn(expected.shape).bfloat16()
    found = pointwise.narrow(matrices, torch.bfloat16)
    assert found.equal(expected)
    gradients = [torch.autograd.grad(y, matrices, d_out) for y in (found, expected)]
    for a, b in zip(*gradients, strict=True):
        assert a.dtype == torch.float32 and a.equal(b)
    assert pointwise.narrow(matrices, torch.float32).equal(torch.cat(matrices))


@compiled
def test_norm_is_exact_and_one_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(shape) for shape in [(3,), (1000, 77), (5, 5), (100_001,)]]
    exact = torch.cat([x.double().flatten() for x in tensors]).norm()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(pointwise.norm(tensors))
    finally:
        torch.set_num_threads(before)
    assert found[0].equal(found[1])
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-6, atol=0)
    for bad in (float("nan"), float("inf")):
        tensors[1][500, 3] = bad
        assert not pointwise.norm(tensors).isfinite()
    strange = [tensors[0].bfloat16(), torch.randn(40, 30).T]
    torch.testing.assert_close(pointwise.norm(strange), torch.nn.utils.get_total_norm(strange))


def test_torch_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(200, 32).bfloat16().requires_grad_()
    weight, targets = torch.randn(777, 32, requires_grad=True), torch.randint(0, 777, (200,))

    def gradients() -> tuple[torch.Tensor, ...]:
        total, _ = chunked_cross_entropy(hidden, weight, targets, label_smoothing=0.1)
        return total.detach(), *torch.autograd.grad(total, (hidden, weight))

    mine = gradients()
    monkeypatch.setattr(native, "library", lambda name: None)
    assert not pointwise.fits(hidden)
    for a, b in zip(mine, gradients(), strict=True):
        assert float((a - b).norm() / b.norm()) < 1e-2


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1 << 12,), (401, 517), (2, 3, 33333)])
def test_dropout_hides_its_share_and_the_backward_pass_the_same(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    y = pointwise.dropout(x, 0.3)
    assert "Dropout" in type(y.grad_fn).__name__
    kept = y != 0
    assert y.detach().unique().tolist() == [0.0, float(torch.tensor(1 / 0.7).to(dtype))]
    assert float(kept.float().mean()) == pytest.approx(0.7, abs=4 * (0.21 / x.numel()) ** 0.5)
    (gradient,) = torch.autograd.grad(y, x, torch.full(shape, 2.0, dtype=dtype))
    assert gradient.equal(2 * y.detach())
    assert not (pointwise.dropout(x, 0.3) != 0).equal(kept)
    torch.manual_seed(0)
    assert (pointwise.dropout(x, 0.3) != 0).equal(kept), "the generator's seed decides"
    assert pointwise.dropout(x, 0.3, False) is x and pointwise.dropout(x, 0.0) is x


@compiled
def test_what_dropout_hides_here_tells_nothing_of_what_it_hides_there() -> None:
    torch.manual_seed(0)
    n = 1 << 20
    masks = torch.stack([pointwise.dropout(torch.ones(n), 0.5) for _ in range(8)]) - 1
    bound = 5 / n**0.5
    for shift in (1, 2, 8, 16, 17, 64, 4096, 16384):  # lanes, vectors, rows, runs
        assert (masks[:, shift:] * masks[:, :-shift]).mean(1).abs().max() < bound
    assert (masks @ masks.T / n - torch.eye(8)).abs().max() < bound
    bits = masks.view(8, -1, 16) > 0
    counts = bits.sum(2).flatten().bincount(minlength=17) / bits[..., 0].numel()
    binomial = torch.distributions.Binomial(16, torch.tensor(0.5))
    torch.testing.assert_close(
        counts, binomial.log_prob(torch.arange(17.0)).exp(), rtol=0, atol=4e-3
    )


@compiled
@pytest.mark.parametrize("shape", [(257, 16), (3, 40, 768)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_of_a_sum(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = LayerNorm(shape[-1], 1e-5)
    for p in norm.parameters():
        torch.nn.init.normal_(p)
    norm = norm.to(dtype)
    x, y = (torch.randn(shape).mul(3).add(5).bfloat16() for _ in range(2))
    weight, bias = (p.detach().double() for p in norm.parameters())
    expected = F.layer_norm(x.double() + y.double(), shape[-1:], weight, bias, 1e-5)
    with torch.inference_mode():
        found = norm.of_sum(x, y)
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-4)
    learned = norm.of_sum(x.clone().requires_grad_(), y)  # torch's, with a graph
    torch.testing.assert_close(learned.double(), expected, rtol=0.02, atol=0.1)
    learned.float().sum().backward()
    assert all(p.grad is not None for p in norm.parameters())
