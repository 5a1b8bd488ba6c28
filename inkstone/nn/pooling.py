"""One vector a text from the states of its tokens (Reimers and Gurevych 2019, section 3)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Mode = Literal["mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken"]
MODES: tuple[Mode, ...] = ("mean", "cls", "max", "mean_sqrt_len_tokens", "lasttoken")


def pool(states: Tensor, mask: Tensor, mode: Mode) -> Tensor:
    """States of tokens to one vector a row: [B, T, D], [B, T] → [B, D]; zeros for a row of none."""
    real = mask[:, :, None]
    count = real.sum(1).clamp(min=1)
    if mode == "cls":
        chosen = mask.int().argmax(1)
    elif mode == "lasttoken":
        chosen = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    elif mode == "max":
        highest = states.masked_fill(~real, -torch.inf).amax(1)
        return highest.masked_fill(highest.isinf(), 0.0)
    else:
        total = (states * real).sum(1)
        return total / (count if mode == "mean" else count.sqrt())
    return states[torch.arange(len(states), device=states.device), chosen]
