"""Positions: the fixed waves of the first Transformer, and relative distances in buckets (T5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inkstone.errors import ModelError


def check_length(n_tokens: int, max_seq_len: int) -> None:
    """Raises ModelError when the tokens are more than the model's context."""
    if n_tokens > max_seq_len:
        raise ModelError(
            f"{n_tokens} tokens do not fit the model's context of {max_seq_len}",
            fix="shorten the input or train a model with a larger max_seq_len",
        )


def sinusoids(positions: Tensor, d_model: int) -> Tensor:
    """Waves of geometrically growing length (Vaswani et al. 2017, section 3.5): [...] → [..., D].

    Sines fill the first half of the channels and cosines the second, as in Marian; the paper
    interleaves them, which is the same up to the order of channels.
    """
    n_sines = d_model - d_model // 2
    wave = torch.arange(0, d_model, 2, device=positions.device, dtype=torch.float64) / d_model
    angle = positions.double()[..., None] * 10000.0**-wave
    return torch.cat((angle.sin(), angle[..., : d_model - n_sines].cos()), -1).float()


def distance_buckets(
    n_queries: int,
    n_keys: int,
    *,
    both_ways: bool,
    n_buckets: int,
    max_distance: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Bucket of the distance from each query to each key (Raffel et al. 2020, section 2.1).

    Half of the buckets hold one distance each; the others grow logarithmically up to
    `max_distance`, beyond which all is one. The queries are the last `n_queries` columns.

    Returns:
        [T, S] int64 in [0, n_buckets).
    """
    query = torch.arange(n_keys - n_queries, n_keys, device=device)[:, None]
    ahead = torch.arange(n_keys, device=device) - query
    first = torch.zeros_like(ahead)
    if both_ways:
        n_buckets //= 2
        first = (ahead > 0).long() * n_buckets
        distance = ahead.abs()
    else:
        distance = (-ahead).clamp(min=0)
    exact = n_buckets // 2
    share = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (share * (n_buckets - exact)).long()).clamp(max=n_buckets - 1)
    return first + torch.where(distance < exact, distance, far)
