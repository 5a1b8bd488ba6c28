"""Batches laid out step by step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import ModelError
from inkstone.nn.steps import Steps

masks = st.integers(1, 6).flatmap(
    lambda t: st.lists(st.lists(st.booleans(), min_size=t, max_size=t), min_size=1, max_size=6)
)


@settings(max_examples=80, deadline=None)
@given(masks)
def test_every_token_has_one_place(rows: list[list[bool]]) -> None:
    mask = torch.tensor(rows)
    x = torch.arange(1, mask.numel() + 1).view(*mask.shape, 1).float()
    steps = Steps.of(mask, mask)
    packed = steps.pack(x)
    assert len(packed) == steps.n_tokens == int(mask.sum())
    assert torch.equal(steps.unpack(packed), x * mask[..., None])
    assert list(steps.sizes) == sorted(steps.sizes, reverse=True)
    rows_of = steps.unpack(steps.rows[:, None].float() + 1)[..., 0].long() - 1
    states = torch.arange(len(mask)).float()[:, None]
    assert torch.equal(steps.unsort(steps.sort(states)), states)
    for b, row in enumerate(mask):
        assert len(set(rows_of[b][row].tolist())) <= 1
        tokens = x[b][row, 0]
        if len(tokens):
            rank = int(rows_of[b][row][0])
            assert packed[rank, 0] == tokens[0] and packed[steps.last[rank], 0] == tokens[-1]


@settings(max_examples=80, deadline=None)
@given(masks, st.booleans())
def test_previous_is_one_step_earlier_in_the_same_row(rows: list[list[bool]], back: bool) -> None:
    mask = torch.tensor(rows)
    x = torch.arange(1, mask.numel() + 1).view(*mask.shape, 1).float()
    steps = Steps.of(mask, mask)
    initial = steps.sort(-torch.arange(1, len(mask) + 1).float()[:, None])
    found = steps.unpack(steps.previous(steps.pack(x), initial, reverse=back))
    for b, row in enumerate(mask):
        tokens = x[b][row, 0].tolist()
        start = [-float(b + 1)]
        expected = tokens[1:] + start if back else start + tokens[:-1]
        assert found[b][row, 0].tolist() == expected[: len(tokens)]


def test_documents_are_sequences_of_their_own() -> None:
    segments = torch.tensor([[0, 0, 1, 1, 1], [0, 1, 2, 2, 2]])
    steps = Steps.of(segments, None, segments)
    assert steps.sizes == (5, 3, 2) and steps.n_sequences == 5
    x = torch.arange(10.0).view(2, 5, 1)
    assert torch.equal(steps.unpack(steps.pack(x)), x)


def test_shapes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ModelError, match="attention_mask has shape"):
        Steps.of(torch.zeros(2, 3), torch.ones(2, 4))
