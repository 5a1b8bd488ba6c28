"""nn/compiled_attention.py: the same sums as plain attention, for rows of any length."""

from __future__ import annotations

import pytest
import torch

from inkstone.nn import attention, compiled_attention, native
from inkstone.nn.attention import View
from inkstone.nn.packing import Packing

pytestmark = pytest.mark.skipif(
    native.library("attention") is None,
    reason="this processor has no tile registers, or there is no C++ compiler",
)


def _qkv(n: int, heads: int, width: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 3, heads, width, generator=generator).bfloat16().unbind(1)


@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize(
    "lengths", [[1], [16, 16], [32, 31, 33], [7, 150, 0, 1, 64], [100] * 3, [513, 2]]
)
def test_equals_plain_attention(lengths: list[int], width: int) -> None:
    heads, longest = 3, max(lengths)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    packing = Packing.of(real.long(), real)
    n = len(real.flatten()) if packing.index is None else len(packing.index)
    q, k, v = _qkv(n, heads, width)
    assert compiled_attention.fits(q, k, v, packing)
    out = compiled_attention.attend(q, k, v, packing)
    start = 0
    for length in lengths:
        part = slice(start, start + length)
        a, b, c = (x[part].float().transpose(0, 1) for x in (q, k, v))
        expected = torch.nn.functional.scaled_dot_product_attention(a, b, c)
        found = out[part].float().unflatten(1, (heads, width)).transpose(0, 1)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        start += length
    assert not bool(out[start:].any())


def test_large_scores_do_not_overflow() -> None:
    q, k, v = _qkv(40, 2, 32)
    packing = Packing.of(torch.zeros(1, 40), None)
    out = compiled_attention.attend(q * 100, k * 100, v, packing)
    a, b, c = (x.float().transpose(0, 1) for x in (q * 100, k * 100, v))
    expected = torch.nn.functional.scaled_dot_product_attention(a, b, c).transpose(0, 1).flatten(1)
    torch.testing.assert_close(out.float(), expected, rtol=0.02, atol=0.02)


def test_only_where_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.detach().requires_grad_() for x in _qkv(64, 2, 32))
    packing = Packing.of(torch.zeros(2, 32), None)
    view = View.everything(32, None, q.device)
    calls = []
    monkeypatch.setattr(compiled_attention, "attend", lambda *_: calls.append(1) or q.flatten(1))
    attention.attend_packed(q, k, v, packing, view)
    assert not calls
    with torch.no_grad():
        attention.attend_packed(q, k, v, packing, view)
    assert calls
