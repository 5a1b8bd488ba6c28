"""nn/compiled_product.py: the product equals that of doubles, whatever does not come out even."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inkstone.nn import compiled_product

pytestmark = pytest.mark.skipif(
    not compiled_product.fits(2), reason="this processor has tiles, or no bf16 in vectors"
)


def _normal(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(shape[0])
    return torch.randn(*shape, generator=generator).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("rows", "d_in", "d_out"),
    [(1, 2, 1), (5, 32, 63), (6, 34, 64), (7, 32, 96), (65, 128, 100), (600, 768, 65)],
)
def test_equals_the_product_of_doubles(rows: int, d_in: int, d_out: int, bias: bool) -> None:
    wide, weight = _normal(rows, d_in + 3), _normal(d_out, d_in)
    x, b = wide[:, 1 : d_in + 1], _normal(d_out) if bias else None
    packed = compiled_product.pack(weight, b)
    expected = F.linear(x.double(), weight.double(), None if b is None else b.double())
    for gelu in (False, True):
        found = compiled_product.linear(x, *packed, d_out, gelu=gelu)
        wanted = F.gelu(expected) if gelu else expected
        torch.testing.assert_close(found.double(), wanted, rtol=0.004, atol=1e-4)


def test_gelu_is_the_exact_one_also_far_out() -> None:
    x = torch.linspace(-12, 12, 4801)[:, None].expand(-1, 2).bfloat16()
    one = torch.tensor([[1.0, 0.0]]).bfloat16()
    found = compiled_product.linear(x, *compiled_product.pack(one, None), 1, gelu=True)
    exact = F.gelu(x[:, :1].double())
    assert (found.double() - exact).abs().le(exact.abs() * 2**-8 + 5e-6).all()


def test_what_is_no_number_stays_none() -> None:
    x = torch.full((8, 2), float("nan")).bfloat16()
    packed = compiled_product.pack(torch.ones(1, 2).bfloat16(), None)
    assert all(
        compiled_product.linear(x, *packed, 1, gelu=gelu).isnan().all() for gelu in (False, True)
    )
