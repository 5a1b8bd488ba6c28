"""nn/matmul.py: products in pieces are the products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.nn import matmul

SQUARE = (512, 96, 512)  # rows, d_in, d_out: cut forwards


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [SQUARE, (512, 384, 96), (600, 256, 512), (33, 8, 8)])
def test_linear_is_torchs_forwards_and_backwards(shape: tuple[int, int, int], bias: bool) -> None:
    torch.manual_seed(0)
    rows, d_in, d_out = shape
    x = torch.randn(rows // 3, 3, d_in).bfloat16().requires_grad_()
    weight = torch.randn(d_out, d_in).bfloat16().requires_grad_()
    b = torch.randn(d_out).bfloat16().requires_grad_() if bias else None
    inputs = [t for t in (x, weight, b) if t is not None]
    y = matmul.linear(x, weight, b)
    d_y = torch.randn_like(y)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = F.linear(exact[0], exact[1], exact[2] if bias else None)
    wanted = (expected, *torch.autograd.grad(expected, exact, d_y.double()))
    for found, right in zip((y, *torch.autograd.grad(y, inputs, d_y)), wanted, strict=True):
        assert found.dtype == torch.bfloat16 and found.shape == right.shape
        assert float((found.double() - right).norm() / right.norm()) < 1e-2


def test_square_results_are_cut_and_others_are_not() -> None:
    rows, d_in, d_out = SQUARE
    x = torch.randn(rows, d_in).bfloat16().requires_grad_()
    cut = matmul.linear(x, torch.randn(d_out, d_in).bfloat16())
    assert "_Linear" in type(cut.grad_fn).__name__
    for whole in (
        matmul.linear(x, torch.randn(4 * d_out, d_in).bfloat16()),
        matmul.linear(x.float(), torch.randn(d_out, d_in)),
    ):
        assert "_Linear" not in type(whole.grad_fn).__name__


@given(n=st.integers(1, 700), m=st.integers(1, 700), bias=st.booleans())
@settings(max_examples=30, deadline=None)
def test_every_row_of_a_product_is_written(n: int, m: int, bias: bool) -> None:
    a, b = torch.ones(n, 16).bfloat16(), torch.ones(16, m).bfloat16()
    shift = torch.full((m,), 2.0).bfloat16() if bias else None
    out = torch.full((n, m + 3), float("nan")).bfloat16()
    matmul.product(a, b, shift, out=out[:, :m])
    assert (out[:, :m] == 16 + 2 * bias).all() and out[:, m:].isnan().all()
    assert matmul.product(a, b, shift).equal(out[:, :m])


def test_regular_numbers_are_few_and_near() -> None:
    found = {n: matmul.regular(n) for n in range(9000)}
    assert all(n <= m <= n + max(7, n / 32) for n, m in found.items())
    assert all(m % matmul.ALIGN == 0 and matmul.regular(m) == m for m in found.values())
    assert len({m for n, m in found.items() if 4096 < n <= 8192}) == matmul.SIZES
