"""Weights in 8 or 4 bits: w ≈ scale · code.

Codes are whole numbers with a scale for 32 inputs of a row, or floats of 8 bits with one for a row
(E4M3: a sign, 4 bits of exponent, 3 of mantissa; Micikevicius et al. 2022, "FP8 Formats for Deep
Learning", table 1).

Rounding to the nearest is exact enough with 8 bits. With 4 the scale of a group is searched: the
one whose codes give the least squared error, each weight counted by how large its input tends to be
on the user's own text (activation-aware quantization: Lin et al. 2023, section 3.1, who scale
weights for the same end; Frantar et al. 2022 for the error that is minimised).
Shapes: d_out, d_in, G = d_in / 32 groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inkstone.errors import ModelError

GROUP = 32  # inputs that share a scale
BITS = (8, 4)
SHRUNK = tuple(1.0 - 0.02 * i for i in range(18))  # scales that are tried, of the largest weight's


FLOAT8 = torch.float8_e4m3fn
LARGEST = 448.0  # of its numbers
WIDER = 256.0  # 2^8: between its numbers and those of fp16 with the same bits


@dataclass(frozen=True)
class Quantized:
    """A weight in few bits.

    Attributes:
        codes: [d_out, d_in] int8, in [−127, 127] or [−8, 7]; or float8 (`FLOAT8`).
        scales: [d_out, G] fp16; of float8 [d_out, 1] fp32.
        bits: 8 or 4.
    """

    codes: Tensor
    scales: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """The weight that they stand for: [d_out, d_in] fp32."""
        if self.floats:
            return _widened(self.codes).float().mul_(WIDER * self.scales)
        groups = self.codes.unflatten(1, (-1, GROUP)).float()
        return (groups * self.scales.float()[..., None]).flatten(1)

    @property
    def floats(self) -> bool:
        """Whether the codes are floats, not whole numbers."""
        return self.codes.dtype == FLOAT8

    @property
    def n_bytes(self) -> int:
        """What codes and scales take, packed."""
        return self.codes.numel() * self.bits // 8 + self.scales.nbytes

    @classmethod
    def below_each_other(cls, parts: Sequence[Quantized]) -> Quantized:
        """Weights of one width and as many bits as one."""
        codes, scales = torch.cat([p.codes for p in parts]), torch.cat([p.scales for p in parts])
        return cls(codes, scales, parts[0].bits)

    def split(self, heights: Sequence[int]) -> list[Quantized]:
        """Back again."""
        pairs = zip(self.codes.split(list(heights)), self.scales.split(list(heights)), strict=True)
        return [Quantized(codes.clone(), scales.clone(), self.bits) for codes, scales in pairs]


def quantize(weight: Tensor, bits: int, importance: Tensor | None = None) -> Quantized:
    """Round a weight.

    Args:
        weight: [d_out, d_in]; d_in divides by 32.
        bits: 8 or 4.
        importance: [d_in], how much the error of each input's weights counts: the mean square of
            that input. None: all alike.

    Raises:
        ModelError: The width does not divide, or the weight is not finite.
    """
    if bits not in BITS or weight.ndim != 2 or weight.shape[1] % GROUP:
        raise ModelError(
            f"a weight of shape {list(weight.shape)} cannot be stored in {bits} bits: rows are cut "
            f"into groups of {GROUP}"
        )
    if not torch.isfinite(weight).all():
        raise ModelError("a weight is NaN or infinite, so it cannot be rounded")
    groups = weight.detach().float().unflatten(1, (-1, GROUP))  # [d_out, G, 32]
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))  # with its sign
    if bits == 8:
        return _rounded(groups, largest.abs() / 127, 8)
    weigh = torch.ones(weight.shape[1], device=weight.device) if importance is None else importance
    weigh = weigh.float().clamp(min=1e-12).unflatten(0, (-1, GROUP))
    best = _rounded(groups, largest / -8, 4)
    least = _error(groups, best, weigh)
    for shrunk in SHRUNK:
        for divisor in (-8.0, 7.0):  # which end the largest weight takes
            tried = _rounded(groups, shrunk * largest / divisor, 4)
            tried = _fitted(groups, tried, weigh)
            error = _error(groups, tried, weigh)
            better = error < least
            least = torch.where(better, error, least)
            best = Quantized(
                torch.where(better.repeat_interleave(GROUP, 1), tried.codes, best.codes),
                torch.where(better, tried.scales, best.scales), 4,
            )  # fmt: skip
    return best


def quantize_float8(weight: Tensor) -> Quantized:
    """Round a weight to floats of 8 bits; the largest of a row becomes the largest of them.

    Args:
        weight: [d_out, d_in].

    Raises:
        ModelError: It is not finite.
    """
    if not torch.isfinite(weight).all():
        raise ModelError("a weight is NaN or infinite, so it cannot be rounded")
    rows = weight.detach().float()
    largest = rows.abs().amax(1, keepdim=True)
    scales = torch.where(largest > 0, largest / LARGEST, torch.ones_like(largest))
    codes = (rows / scales).clamp_(-LARGEST, LARGEST).to(FLOAT8)
    return Quantized(codes, scales, 8)


def _widened(codes: Tensor) -> Tensor:
    """float8 → fp16 of 1/256 of their value, exactly: the bits of one stand in those of the other.

    torch's own conversion on a CPU takes several times as long.
    """
    bits = codes.view(torch.int8).to(torch.int16)  # the sign in all high bits
    return bits.bitwise_left_shift_(7).bitwise_and_(~0x4000).view(torch.float16)


def _rounded(groups: Tensor, scale: Tensor, bits: int) -> Quantized:
    """The nearest codes at a scale [d_out, G, 1]."""
    kept = scale.half().float()
    inverse = torch.where(kept == 0, torch.zeros_like(kept), 1 / kept)
    low, high = (-127, 127) if bits == 8 else (-8, 7)
    codes = (groups * inverse).round_().clamp_(low, high).to(torch.int8)
    return Quantized(codes.flatten(1), kept[..., 0].half(), bits)


def _fitted(groups: Tensor, found: Quantized, weigh: Tensor) -> Quantized:
    """The same codes with the scale that fits them best: Σ m w c / Σ m c²."""
    codes = found.codes.view_as(groups).float()
    over = (weigh * codes * codes).sum(2)
    scale = torch.where(over > 0, (weigh * groups * codes).sum(2) / over, found.scales.float())
    return _rounded(groups, scale[..., None], 4)


def _error(groups: Tensor, found: Quantized, weigh: Tensor) -> Tensor:
    """Weighted squared error of every group: [d_out, G]."""
    off = found.codes.view_as(groups) * found.scales.float()[..., None] - groups
    return (weigh * off * off).sum(2)
