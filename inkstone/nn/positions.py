"""Position numbers of tokens in padded, cached or packed rows."""

from __future__ import annotations

import torch
from torch import Tensor


def position_ids(
    length: int,
    past: int,
    device: torch.device,
    attention_mask: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> Tensor:
    """Positions of T new tokens after `past` cached ones.

    Counted from the first real token of a row when an `attention_mask` [B, past + T] is given, from
    the first token of each document when `segment_ids` [B, T] are.

    Returns:
        int64 [B or 1, T].
    """
    if attention_mask is not None:
        return (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, past:]
    positions = torch.arange(past, past + length, device=device)[None]
    if segment_ids is not None:
        starts = torch.zeros_like(segment_ids)
        starts[:, 1:] = (segment_ids[:, 1:] != segment_ids[:, :-1]) * positions[:, 1:]
        positions = positions - starts.cummax(-1).values
    return positions
