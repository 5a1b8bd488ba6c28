"""Layer norm and RMS norm: statistics in fp32 inside, input and output in the compute dtype."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """(x − mean) / √(variance + ε) · weight + bias (Ba et al. 2016, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width], in the dtype of x."""
        # The CPU kernel takes fp32 weights beside a bf16 input; CUDA wants one dtype.
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if x.is_cuda:
            weight, bias = weight.to(x.dtype), bias.to(x.dtype)
        return F.layer_norm(x, weight.shape, weight, bias, self.eps)


class RMSNorm(nn.Module):
    """x / √(mean(x²) + ε) · weight (Zhang and Sennrich 2019, equation 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width] → [..., width], in the dtype of x."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
