"""Layer norm and RMS norm: statistics in fp32 inside, input and output in the compute dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.nn import pointwise


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-5, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width], in the dtype of x."""
        # The CPU kernel takes fp32 weights beside a bf16 input; CUDA wants one dtype.
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if x.is_cuda:
            weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)

    def of_sum(self, x: Tensor, y: Tensor) -> Tensor:
        """The norm of x + y, [..., width] each: what follows every part of a post-norm block."""
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (x, y, self.weight))
        alike = x.shape == y.shape and x.shape[-1] % pointwise.LANES == 0
        if not learns and alike and pointwise.fits(x) and pointwise.fits(y):
            return pointwise.norm_of_sum(x, y, self.weight, self.bias, self.eps)
        return self(x + y)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight (Zhang and Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width], in the dtype of x."""
        if x.is_cuda:
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        out: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return out


class _RMSNorm(torch.autograd.Function):
    """On a CPU torch has no fused RMS norm; this takes half the time of the composed one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:  # type: ignore[override]
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_().to(x.dtype)
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight.to(x.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        unit, scale, weight = ctx.saved_tensors
        low = weight.to(grad.dtype)
        product = (grad * unit).reshape(-1, len(weight))
        d_weight = product.sum(0, dtype=weight.dtype)
        along = torch.mv(product, low).view(scale.shape).div_(-len(weight))
        return torch.addcmul(grad * low, unit, along).mul_(scale), d_weight, None
