"""nn/attention.py and nn/blockwise.py: visibility, and the CPU path against the kernel's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.nn import attention, blockwise
from inkstone.nn.attention import View, attend
from inkstone.nn.cache import KVCache
from inkstone.nn.packing import Packing


def _view(ids: Tensor, **options: object) -> View:
    return View.of(ids, max_seq_len=64, **options)  # type: ignore[arg-type]


def _ids(batch: int, length: int) -> Tensor:
    return torch.zeros(batch, length, dtype=torch.long)


def test_plain_text_needs_no_mask() -> None:
    view = _view(_ids(2, 5))
    assert view.mask is None and view.causal and view.positions.tolist() == [0, 1, 2, 3, 4]
    everything = torch.ones(2, 5, dtype=torch.long)
    assert _view(_ids(2, 5), attention_mask=everything).mask is None
    assert _view(_ids(2, 5), window=5).mask is None


def test_one_new_token_sees_the_whole_cache_without_a_mask() -> None:
    cache = KVCache(1, 2, 1, 2, capacity=8)
    _view(_ids(2, 3), cache=cache)
    view = _view(_ids(2, 1), cache=cache)
    assert view.mask is None and not view.causal and view.positions.tolist() == [3]


def test_padding_on_either_side_gives_the_same_positions() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    view = _view(_ids(2, 4), attention_mask=mask)
    assert view.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 2]]
    assert view.mask is not None
    assert view.mask[0, 0, 3].tolist() == [False, False, True, True]
    assert view.mask[1, 0, 2].tolist() == [True, True, True, False]
    assert bool(view.mask.any(-1).all()), "a query that sees nothing divides by zero"


def test_the_cache_remembers_padding() -> None:
    cache = KVCache(1, 2, 1, 2, capacity=8)
    _view(_ids(2, 3), cache=cache, attention_mask=torch.tensor([[0, 1, 1], [1, 1, 1]]))
    view = _view(_ids(2, 1), cache=cache)
    assert view.positions.tolist() == [[2], [3]]
    assert view.mask is not None and view.mask[0, 0, 0].tolist() == [False, True, True, True]


def test_segments_restart_positions_and_hide_each_other() -> None:
    view = _view(_ids(1, 6), segment_ids=torch.tensor([[0, 0, 1, 1, 1, 2]]))
    assert view.positions.tolist() == [[0, 1, 0, 1, 2, 0]]
    assert view.mask is not None
    assert view.mask[0, 0, 4].tolist() == [False, False, True, True, True, False]


def test_a_window_hides_what_is_far() -> None:
    view = _view(_ids(1, 5), window=2)
    assert view.mask is not None
    assert view.mask[0, 0, 4].tolist() == [False, False, False, True, True]
    cache = KVCache(1, 1, 1, 2, capacity=8)
    _view(_ids(1, 4), cache=cache, window=2)
    late = _view(_ids(1, 1), cache=cache, window=2)
    assert late.mask is not None and late.mask[0, 0, 0].tolist() == [False] * 3 + [True] * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention_mask": torch.ones(2, 4)}, r"shape \(2, 4\), but the batch is \(2, 5\)"),
        (
            {"segment_ids": _ids(2, 5), "cache": KVCache(1, 2, 1, 2, capacity=8)},
            "cannot be used together",
        ),
    ],
)
def test_what_does_not_fit_together_is_a_named_error(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        _view(_ids(2, 5), **options)


def test_too_long_is_a_named_error() -> None:
    with pytest.raises(ModelError, match="65 tokens do not fit the model's context of 64"):
        _view(_ids(1, 65))


def _qkv(
    batch: int, heads: int, kv_heads: int, length: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, length, n, 8) for n in (heads, kv_heads, kv_heads)]
    q, k, v = (torch.randn(s, generator=generator).to(dtype).transpose(1, 2) for s in shapes)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


@pytest.mark.parametrize("length", [2, 127, 128, 129, 300, 520])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
def test_blockwise_equals_the_kernel_with_gradients(length: int, heads: int, kv_heads: int) -> None:
    q, k, v = _qkv(2, heads, kv_heads, length, torch.float32)
    kernel = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    reference = kernel.transpose(1, 2).flatten(2)
    weight = torch.randn(reference.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad((reference * weight).sum(), (q, k, v))
    out = blockwise.attend(q, k, v, None)
    found = torch.autograd.grad((out * weight).sum(), (q, k, v))
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows_of_mask", [1, 2])
def test_blockwise_with_a_mask_equals_the_kernel(rows_of_mask: int) -> None:
    q, k, v = _qkv(2, 4, 2, 150, torch.float32)
    mask = torch.rand(rows_of_mask, 1, 150, 150, generator=torch.Generator().manual_seed(0)) > 0.5
    mask = (mask | torch.eye(150, dtype=torch.bool)).tril()
    kernel = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    reference = kernel.transpose(1, 2).flatten(2)
    expected = torch.autograd.grad(reference.square().sum(), (q, k, v))
    out = blockwise.attend(q, k, v, mask)
    found = torch.autograd.grad(out.square().sum(), (q, k, v))
    torch.testing.assert_close(out, reference, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_attend_in_bf16_is_close_to_fp32() -> None:
    view = _view(_ids(2, 60))
    exact = attend(*_qkv(2, 4, 4, 60, torch.float32), view)
    low = attend(*_qkv(2, 4, 4, 60, torch.bfloat16), view)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.05


BOTH_WAYS = [(None, 5), (None, 150), ("columns", 5), ("columns", 150), ("window", 150)]


@pytest.mark.parametrize(("masked", "n_keys"), BOTH_WAYS)
def test_both_ways_on_the_cpu_path_equals_the_kernel(masked: str | None, n_keys: int) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 150
    q = torch.randn(2, 4, n, 8, generator=generator, requires_grad=True)
    k = torch.randn(2, 2, n_keys, 8, generator=generator, requires_grad=True)
    v = torch.randn(2, 2, n_keys, 8, generator=generator, requires_grad=True)
    real = torch.ones(2, n_keys, dtype=torch.bool)
    real[0, :2] = False
    view = View.everything(n_keys, real if masked == "columns" else None, q.device)
    if masked == "window":
        view = View.everything(n, real, q.device, window=3)
    weight = torch.randn(2, n, 32, generator=generator)
    found = attend(q, k, v, view)
    gradients = torch.autograd.grad((found * weight).sum(), (q, k, v))
    reference = F.scaled_dot_product_attention(q, k, v, attn_mask=view.mask, enable_gqa=True)
    reference = reference.transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)
    expected = torch.autograd.grad((reference * weight).sum(), (q, k, v))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", [False, True])
def test_rows_one_by_one_equal_rows_side_by_side(
    dtype: torch.dtype, left: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    lengths, width, heads, head_dim = [7, 150, 0, 1, 33], 150, 2, 16
    real = torch.arange(width) < torch.tensor(lengths)[:, None]
    real = real.flip(1) if left else real
    packing = Packing.of(real.long(), real)
    view = View.everything(width, packing.real, real.device)
    assert packing.index is not None
    assert packing.n_tokens == sum(lengths) < len(packing.index)  # padding comes along
    qkv = torch.randn(len(packing.index), 3, heads, head_dim, requires_grad=True)
    d_out = torch.randn(sum(lengths), heads * head_dim)
    found = []
    for cost in (0, 1 << 60):
        monkeypatch.setattr(attention, "ROW_COST", cost)
        out = attention.attend_packed(*qkv.to(dtype).unbind(1), packing, view)
        assert bool(out.isfinite().all())
        out = out[: sum(lengths)]
        found.append((out, *torch.autograd.grad(out, qkv, d_out.to(dtype))))
    tolerance = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for one, side in zip(*found, strict=True):
        torch.testing.assert_close(one, side, **tolerance)
