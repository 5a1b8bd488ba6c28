"""nn/quantized.py: rounding, compared with the plainest way to do it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import ModelError
from inkstone.nn.panels import WIDE, pack
from inkstone.nn.quantized import GROUP, Quantized, quantize, quantize_float8


def _weight(rows: int = 48, width: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05


def test_eight_bits_round_to_the_nearest() -> None:
    weight = _weight()
    found = quantize(weight, 8)
    groups = weight.view(48, -1, GROUP)
    step = (groups.abs().amax(2) / 127).half().float()
    off = (found.dequantize().view_as(groups) - groups).abs()
    assert (off <= 0.5001 * step[..., None] + 1e-3 * groups.abs()).all()
    assert found.codes.dtype == torch.int8 and found.codes.abs().max() == 127
    assert found.n_bytes == 48 * 96 + 48 * 3 * 2


def test_four_bits_lose_less_than_rounding_does() -> None:
    weight = _weight()
    groups = weight.view(48, -1, GROUP)
    top = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (top / -8).half().float()
    plain = (groups / scale).round().clamp(-8, 7) * scale
    found = quantize(weight, 4)
    assert found.codes.min() >= -8 and found.codes.max() <= 7
    error = (found.dequantize() - weight).square().sum()
    assert error < 0.9 * (plain.view_as(weight) - weight).square().sum()


def test_what_matters_is_kept_more_exactly() -> None:
    weight, importance = _weight(64, 64), torch.full((64,), 0.01)
    importance[::8] = 1.0
    plain = (quantize(weight, 4).dequantize() - weight).square()
    aware = (quantize(weight, 4, importance).dequantize() - weight).square()
    assert (aware * importance).sum() < 0.9 * (plain * importance).sum()


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from((8, 4)), st.integers(1, 70), st.integers(1, 3),
    st.sampled_from((0.0, 1e-8, 1e-3, 1.0, 1e4)), st.integers(0, 99),
)  # fmt: skip
def test_any_weight(bits: int, rows: int, groups: int, size: float, seed: int) -> None:
    weight = _weight(rows, groups * GROUP, seed) * size
    weight[0, :GROUP] = 0  # a group without a scale
    found = quantize(weight, bits).dequantize()
    assert torch.isfinite(found).all() and (found[0, :GROUP] == 0).all()
    step = weight.view(rows, -1, GROUP).abs().amax(2, keepdim=True) / (127 if bits == 8 else 7)
    off = (found - weight).view(rows, -1, GROUP).abs()
    assert (off <= 1.01 * step + 6e-8 * 128).all()


def test_refusals() -> None:
    with pytest.raises(ModelError, match="groups of 32"):
        quantize(torch.zeros(4, 40), 8)
    with pytest.raises(ModelError, match="NaN"):
        quantize(torch.full((4, 32), float("nan")), 4)
    with pytest.raises(ModelError):
        quantize(torch.zeros(4, 32), 3)


@pytest.mark.parametrize("bits", [8, 4])
def test_panels_hold_every_code_and_scale(bits: int) -> None:
    weight = quantize(_weight(40, 64), bits)
    panels = pack(weight, torch.arange(40.0), torch.float32)
    per_group = 1024 + 64 if bits == 8 else 512 + 64
    memory = panels.memory.view(-1, 2, per_group)  # [P, G, bytes]
    assert len(memory) == 2 and panels.bias.tolist() == [*range(40), *[0] * 24]
    for row in (0, 31, 32, 39):
        panel, lane = memory[row // WIDE], row % WIDE
        scales = panel[:, -64:].contiguous().view(torch.float16)
        assert torch.equal(scales[:, lane], weight.scales[row])
        for k in range(64):
            part = panel[k // GROUP, :-64]
            if bits == 8:
                code = int(part.view(8, WIDE, 4)[k % GROUP // 4, lane, k % 4]) - 128
            else:
                byte = int(part.view(4, WIDE, 4)[k % GROUP // 8, lane, k % 4])
                code = (byte >> 4 if k % 8 >= 4 else byte & 15) - 8
            assert code == int(weight.codes[row, k])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.floats(-30, 30), st.integers(0, 1 << 30))
def test_floats_of_eight_bits_are_torchs_own(rows: int, width: int, size: float, seed: int) -> None:
    weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 2**size
    weight[0, 0] = 0
    found = quantize_float8(weight)
    scale = weight.abs().amax(1, keepdim=True) / 448
    scale[scale == 0] = 1
    wanted = (weight / scale).to(torch.float8_e4m3fn).float() * scale
    assert found.scales.shape == (rows, 1) and found.floats
    assert torch.equal(found.dequantize(), wanted)
    error = (found.dequantize() - weight).abs()
    assert (error <= torch.maximum(weight.abs() / 16, scale / 1024) * 1.001).all()  # 3 bits; least


def test_every_float_of_eight_bits_is_widened_exactly() -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    codes = every[~torch.isnan(every)].view(2, -1)
    assert codes.numel() == 254
    found = Quantized(codes, torch.tensor([[1.0], [0.5]]), 8).dequantize()
    assert torch.equal(found, codes.float() * torch.tensor([[1.0], [0.5]]))


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[weight.abs() < 0.7] = 0
    for found in (quantize(weight, 8), quantize(weight, 4), quantize_float8(weight)):
        assert (found.dequantize()[weight == 0] == 0).all()


def test_what_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="NaN or infinite"):
        quantize_float8(torch.tensor([[1.0, float("inf")]]))
