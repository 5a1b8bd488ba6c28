"""Rotary position embedding (Su et al. 2021, section 3.2.2), in the half-split layout.

Channel i of the first half of a head is paired with channel i of the second half, as in the
Llama checkpoints of Hugging Face; pair i turns by position · base^(−2i / head_dim).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS_AT_START = 2048  # the tables grow on demand; a long max_seq_len costs nothing until used


@dataclass(frozen=True, slots=True)
class Stretch:
    """Slower turns of the slow pairs, for a context longer than the one trained on (Llama 3.1).

    Attributes:
        factor: What the slowest pairs' turns are divided by.
        low: Pairs that turn fewer than this many times in `length` are the slowest.
        high: Pairs that turn more often than this keep their pace; those between are blended.
        length: Tokens of the context before.
    """

    factor: float
    low: float
    high: float
    length: int

    def apply(self, turn: Tensor) -> Tensor:
        """Angles a position [E/2] → the stretched ones."""
        turns = self.length * turn / (2 * math.pi)
        kept = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return turn * (kept + (1 - kept) / self.factor)


class Rope(nn.Module):
    """Tables of cosines and sines in fp32, whatever the model is cast to.

    Args:
        head_dim: E, even.
        base: θ of the source; larger turns slower.
        max_seq_len: Positions beyond this are never asked for.
        stretch: For a context that was made longer after training.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, head_dim: int, base: float, max_seq_len: int, stretch: Stretch | None = None
    ) -> None:
        super().__init__()
        self.stretch = stretch
        self.head_dim, self.base, self.max_seq_len = head_dim, base, max_seq_len
        # A model that is laid out on the meta device, to be filled later, needs real tables.
        here = torch.get_default_device()
        empty = torch.empty(0, device="cpu" if here.type == "meta" else here)
        self.register_buffer("cos", empty, persistent=False)
        self.register_buffer("sin", empty, persistent=False)
        self.grow(min(ROWS_AT_START, max_seq_len))

    @torch.inference_mode(False)  # training must be able to use what generation has grown
    def grow(self, rows: int) -> None:
        """Compute the tables for positions 0 … rows − 1: [rows, E/2] each, in fp32."""
        device = self.cos.device
        pairs = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float32)
        turn = self.base ** (-pairs / self.head_dim)
        turn = turn if self.stretch is None else self.stretch.apply(turn)
        angle = torch.arange(rows, device=device, dtype=torch.float32)[:, None] * turn
        self.cos, self.sin = angle.cos(), angle.sin()

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def]
        """Follow a move to another device, but never a cast: bf16 angles ruin long contexts."""
        rows = self.cos.shape[0]
        super()._apply(fn, recurse)
        if self.cos.dtype != torch.float32:
            self.grow(rows)
        return self

    def tables(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and signed sines of `positions` ([T] or [B, T], all < length) for `rotate`.

        Returns:
            Two tensors [T, 1, E] or [B, T, 1, E] in `dtype`.
        """
        if length > self.cos.shape[0]:
            self.grow(min(self.max_seq_len, max(length, 2 * self.cos.shape[0])))
        cos, sin = self.cos[positions], self.sin[positions]
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
        return cos.unsqueeze(-2).to(dtype), sin.unsqueeze(-2).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair of channels of x [B, T, H, E] by its angle: [B, T, H, E]."""
    out: Tensor = _Rotate.apply(x, cos, sin)
    return out


class _Rotate(torch.autograd.Function):
    """A rotation; its gradient is the rotation back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    swapped = torch.cat((x[..., half:], x[..., :half]), dim=-1)
    return (x * cos).add_(swapped.mul_(sin))
