"""The best words of rows of scores, beside torch's own way."""

from __future__ import annotations

import pytest
import torch

from inkstone.nn import native
from inkstone.nn.top import top


@pytest.mark.parametrize("n_words", [5, 16, 300, 4099])
@pytest.mark.parametrize("k", [1, 5])
def test_as_torch(n_words: int, k: int) -> None:
    scores = 5 * torch.randn(7, n_words, generator=torch.manual_seed(0))
    values, ids = top(scores, k)
    wanted, places = torch.log_softmax(scores, -1).topk(k)
    assert torch.equal(ids, places)
    torch.testing.assert_close(values, wanted, atol=2e-6, rtol=1e-6)


def test_what_cannot_be_is_never_chosen() -> None:
    scores = torch.full((2, 40), float("-inf"))
    scores[0, [3, 30]], scores[1, 7] = torch.tensor([1.0, 2.0]), 0.0
    values, ids = top(scores, 3)
    assert ids[0, :2].tolist() == [30, 3] and ids[1, 0] == 7
    assert values[1].tolist() == [0.0, float("-inf"), float("-inf")]


def test_a_view_of_larger_rows() -> None:
    wide = torch.randn(4, 64, generator=torch.manual_seed(1))
    values, ids = top(wide[:, :20], 4)
    wanted, places = torch.log_softmax(wide[:, :20], -1).topk(4)
    assert torch.equal(ids, places)
    torch.testing.assert_close(values, wanted)


def test_equal_ones_in_their_order() -> None:
    if native.library("top") is None:
        pytest.skip("no compiler here; torch promises no order")
    assert top(torch.zeros(1, 50), 4)[1].tolist() == [[0, 1, 2, 3]]


def test_low_precision_goes_through_torch() -> None:
    scores = torch.randn(3, 40, generator=torch.manual_seed(2)).bfloat16()
    values, ids = top(scores, 2)
    wanted, places = torch.log_softmax(scores.float(), -1).topk(2)
    assert torch.equal(ids, places) and torch.equal(values, wanted)
