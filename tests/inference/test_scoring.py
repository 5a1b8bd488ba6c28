"""Tokens behind a cached context score as they do when all is read at once, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inkstone import registry
from inkstone.inference.scoring import logprobs, states

TINY = {"vocab_size": 61, "max_seq_len": 48, "d_model": 32, "n_layers": 2, "n_heads": 4}
FAMILIES = [
    name
    for name in registry.names("models")
    if getattr(registry.load("models", name), "KIND", None) == "causal"
]
CONTEXTS = [[5, 9, 3, 7, 7, 2, 1, 4, 8], [1, 2], [60, 3, 3, 9, 11], [4]]
ROWS = [
    (0, [7, 1, 5]), (1, [3]), (1, [3, 9, 9, 30, 2]), (2, [8, 8]), (0, [2]), (3, [6, 1]),
    (2, [1, 2, 3, 4, 5, 6]),
]  # fmt: skip


def build(name: str) -> Any:
    family = registry.load("models", name)
    torch.manual_seed(0)
    shape = {**TINY, "band": 3}
    known = family.Config.model_fields
    model = family.Model(family.Config(**{k: v for k, v in shape.items() if k in known}))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


@torch.no_grad()
def slowly(model: Any, context: list[int], ids: list[int], last: int) -> list[float]:
    whole = torch.tensor([context + ids])
    given = model(whole).log_softmax(-1)[0]
    places = range(whole.shape[1] - last, whole.shape[1])
    return [float(given[p - 1, whole[0, p]]) for p in places]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("tokens_at_once", [1, 30, 8192])
def test_equals_one_row_at_a_time(name: str, tokens_at_once: int) -> None:
    model = build(name)
    last = [min(2, len(ids)) for _, ids in ROWS]
    found = logprobs(model, CONTEXTS, ROWS, last, tokens_at_once=tokens_at_once)
    for (context, ids), n, ours in zip(ROWS, last, found, strict=True):
        assert ours == pytest.approx(slowly(model, CONTEXTS[context], ids, n), abs=2e-5)


def test_one_context_serves_as_many_rows_as_it_has_copies() -> None:
    model = build("gpt2")  # as many rows as contexts: the copy must not write into the original
    rows = [(0, [1, 2, 3]), (0, [4, 5, 6])]
    parts = list(states(model, [[1, 2]], rows, tokens_at_once=6))
    seen = [number for part in parts for number, _ in part]
    assert sorted(seen) == [0, 1]
    for ours, (_, ids) in zip(
        logprobs(model, [[1, 2]], rows, [3, 3], tokens_at_once=6), rows, strict=True
    ):
        assert ours == pytest.approx(slowly(model, [1, 2], ids, 3), abs=2e-5)


def test_a_long_context_takes_no_room_from_the_row_of_a_short_one() -> None:
    model = build("lamda")  # of 48 tokens
    contexts, rows = [[1] * 44, [2, 3]], [(0, [4, 5, 6]), (1, [7] * 40)]
    found = logprobs(model, contexts, rows, [3, 40])
    for ours, (context, ids) in zip(found, rows, strict=True):
        assert ours == pytest.approx(slowly(model, contexts[context], ids, len(ids)), abs=2e-5)


def test_a_context_without_rows_is_not_read() -> None:
    assert logprobs(build("gpt2"), [[1] * 48, [1, 2]], [(1, [3])], [1]) != []
