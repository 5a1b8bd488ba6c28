"""Losses of compared vectors: against sentence-transformers', and against slow loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn.contrastive import cosent, infonce

TAU = 0.05


def unit(rows: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return F.normalize(torch.randn(rows, 8), dim=-1).requires_grad_()


class Fixed(torch.nn.Module):
    """Stands for a model whose vectors are known already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": features["x"]}


def test_infonce_is_multiple_negatives_ranking() -> None:
    losses: Any = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    texts, pairs, negatives = unit(6, 0), unit(6, 1), unit(6, 2)
    theirs = losses.MultipleNegativesRankingLoss(Fixed(), scale=1 / TAU)
    wanted = theirs([{"x": x} for x in (texts, pairs, negatives)], None)
    places = torch.arange(6)
    found = infonce(texts, torch.cat((pairs, negatives)), places, places, TAU) / 6
    torch.testing.assert_close(found, wanted)


def test_cosent_equals_theirs() -> None:
    losses: Any = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    texts, pairs = unit(7, 0), unit(7, 1)
    scores = torch.tensor([0.1, 0.9, 0.5, 0.5, 0.0, 1.0, 0.3])
    wanted = losses.CoSENTLoss(Fixed(), scale=1 / TAU)([{"x": texts}, {"x": pairs}], scores)
    torch.testing.assert_close(cosent((texts * pairs).sum(-1), scores, TAU), wanted)
    assert cosent(torch.tensor([0.3, 0.2]), torch.tensor([1.0, 1.0]), TAU) == 0  # no order asked


def test_other_right_candidates_are_no_wrong_answers() -> None:
    """Text 0 has candidates 0 and 1; candidate 2 belongs to texts 1 and 2; 3 is a negative."""
    texts, candidates = unit(3, 0), unit(4, 1)
    own, targets = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 2, 2])
    right = {0: {0, 1}, 1: {2}, 2: {2}}
    cosines = (texts @ candidates.T).tolist()
    wanted = 0.0
    for i, j in zip(own.tolist(), targets.tolist(), strict=True):
        among = [k for k in range(4) if k == j or k not in right[i]]
        total = sum(math.exp(cosines[i][k] / TAU) for k in among)
        wanted -= math.log(math.exp(cosines[i][j] / TAU) / total)
    found = infonce(texts, candidates, own, targets, TAU)
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    found.backward()
    assert texts.grad is not None and bool(texts.grad.isfinite().all())
