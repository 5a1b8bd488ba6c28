"""nn/linear.py and nn/norms.py: fp32 masters, activations in the dtype of the input."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.norms import LayerNorm, RMSNorm


def _linear(d_out: int, *, bias: bool) -> Linear:
    linear = Linear(8, d_out, bias=bias)
    for p in linear.parameters():
        torch.nn.init.normal_(p)
    return linear


@pytest.mark.parametrize("bias", [False, True])
def test_stacked_maps_equal_the_maps_one_by_one(bias: bool) -> None:
    linears = [_linear(n, bias=bias) for n in (4, 6, 2)]
    x = torch.randn(3, 5, 8)
    one_by_one = torch.cat([linear(x) for linear in linears], dim=-1)
    torch.testing.assert_close(stacked(x, linears), one_by_one)


def test_bf16_input_gives_bf16_output_and_fp32_gradients() -> None:
    linear, norm, table = _linear(4, bias=True), RMSNorm(8), Embedding(5, 8)
    torch.nn.init.normal_(table.weight)
    x = norm(LayerNorm(8)(table(torch.tensor([0, 3, 3]), torch.bfloat16)))
    y = linear(x)
    assert x.dtype == y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    for p in (linear.weight, linear.bias, norm.weight, table.weight):
        assert p is not None and p.grad is not None and p.grad.dtype == torch.float32
    assert not table.weight.grad[[1, 2, 4]].any()  # type: ignore[index]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_equal_their_formulas_with_gradients(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    rms, layer = RMSNorm(16, 1e-6), LayerNorm(16, 1e-5)
    for p in (rms.weight, layer.weight, layer.bias):
        torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))

    def formula_rms(x: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * rms.weight

    def formula_layer(x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, (16,), layer.weight, layer.bias, 1e-5)

    for norm, formula in ((rms, formula_rms), (layer, formula_layer)):
        a, b = x.clone().requires_grad_(), x.float().clone().requires_grad_()
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        out, reference = norm(a), formula(b)
        assert out.dtype == dtype
        found = torch.autograd.grad((out.float() * weight).sum(), (a, *norm.parameters()))
        expected = torch.autograd.grad((reference * weight).sum(), (b, *norm.parameters()))
        torch.testing.assert_close(out.float(), reference, rtol=tolerance, atol=tolerance)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=4 * tolerance)


def test_settled_gradients_of_a_table_are_autograds() -> None:
    torch.manual_seed(0)
    table, ids = Embedding(11, 6), torch.randint(0, 11, (3, 5))
    torch.nn.init.normal_(table.weight)
    found = []
    for pending in (None, []):
        table.pending, table.weight.grad = pending, None
        for _ in range(2):  # micro-batches
            x = table(ids, torch.float32)
            x.pow(3).sum().backward()
            table.settle()
        (x.detach() @ table.weight.T).exp().mean().backward()  # a head that shares the table
        table(ids, torch.float32).square().sum().backward()
        table.settle()
        found.append(table.weight.grad)
        assert table.pending is None or not table.pending
    assert found[0] is not None
    torch.testing.assert_close(found[1], found[0])
