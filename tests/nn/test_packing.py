"""Tokens without padding: what is left out, and what comes along."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from inkstone.nn.matmul import regular
from inkstone.nn.packing import Packing


@given(st.lists(st.integers(0, 40), min_size=1, max_size=9), st.booleans())
def test_packed_tokens_come_back_to_their_places(lengths: list[int], left: bool) -> None:
    real = torch.arange(40) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if left else real
    x = torch.randn(len(lengths), 40, 3)
    packing = Packing.of(real.long(), real)
    packed = packing.pack(x)
    assert packing.n_tokens == sum(lengths)
    assert len(packed) == min(regular(sum(lengths)), 40 * sum(n > 0 for n in lengths))
    assert torch.equal(packed[: packing.n_tokens], x[real])
    assert torch.equal(packing.unpack(packed), x * real[..., None])


def test_padding_that_comes_along_has_no_gradient_and_no_effect() -> None:
    real = torch.tensor([[True] * 5 + [False] * 8, [True] * 6 + [False] * 7])
    x = torch.randn(2, 13, 3, requires_grad=True)
    packing = Packing.of(real.long(), real)
    packing.unpack(packing.pack(x).exp()).sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, x.detach().exp() * real[..., None])
