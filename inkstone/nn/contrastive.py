"""Losses of vectors that are compared with one another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def infonce(
    texts: Tensor, candidates: Tensor, own: Tensor, targets: Tensor, temperature: float
) -> Tensor:
    """−log of the share of the right candidate, summed over pairs; other right ones are left out.

    Henderson et al. 2017, section 4; van den Oord et al. 2018, equation 4.

    Args:
        texts: [U, D] of length 1.
        candidates: [C, D] of length 1.
        own: [B] int64: the text of each pair.
        targets: [B] int64: its candidate.
        temperature: τ.
    """
    scores = texts @ candidates.T / temperature
    right = torch.zeros_like(scores, dtype=torch.bool)
    right[own, targets] = True
    others = right[own].scatter(1, targets[:, None], False)
    return F.cross_entropy(scores[own].masked_fill(others, -torch.inf), targets, reduction="sum")


def cosent(cosines: Tensor, scores: Tensor, temperature: float) -> Tensor:
    """log(1 + Σ exp((cosⱼ − cosᵢ) / τ)) over all i, j with a higher score of i (Su 2022).

    Args:
        cosines: [B].
        scores: [B]; only their order counts.
        temperature: τ.
    """
    wrong_by = (cosines[None, :] - cosines[:, None]) / temperature
    should = scores[:, None] > scores[None, :]
    terms = torch.cat((cosines.new_zeros(1), wrong_by[should]))
    return terms.logsumexp(0)
