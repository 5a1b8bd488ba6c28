"""nn/cache.py: columns, padding, beams, truncation."""

from __future__ import annotations

import pytest
import torch

from inkstone.errors import ModelError
from inkstone.nn.cache import KVCache


def _filled(batch: int = 3, length: int = 4) -> KVCache:
    cache = KVCache(2, batch, 2, 4, capacity=8)
    cache.reserve(length)
    for layer in range(2):
        keys = torch.arange(batch * 2 * length * 4.0).view(batch, 2, length, 4) + 1000 * layer
        cache.update(layer, keys, -keys)
    return cache


def test_update_gives_all_columns_so_far_without_copying() -> None:
    cache = _filled()
    cache.reserve(1)
    new = torch.full((3, 2, 1, 4), 7.0)
    keys, values = cache.update(1, new, 2 * new)
    assert keys.shape == (3, 2, 5, 4) and bool((keys[:, :, 4] == 7).all())
    assert bool((values[:, :, 4] == 14).all())
    assert keys.data_ptr() == cache.keys[1].data_ptr()


def test_more_than_the_capacity_is_a_named_error() -> None:
    cache = _filled()
    with pytest.raises(ModelError, match="holds 8 tokens; 4 are in use and 5 more"):
        cache.reserve(5)


def test_lengths_count_real_tokens_of_each_row() -> None:
    cache = KVCache(1, 2, 1, 2, capacity=6)
    cache.reserve(3, torch.tensor([[False, False, True], [True, True, True]]))
    cache.reserve(1)
    assert cache.lengths.tolist() == [2, 4] and cache.padded


@pytest.mark.parametrize("rows", [[2, 0, 0], [1], [0, 1, 2, 2]])
def test_reorder_moves_rows(rows: list[int]) -> None:
    cache, before = _filled(), _filled()
    cache.reorder(torch.tensor(rows))
    assert cache.batch == len(rows)
    for layer in range(2):
        assert torch.equal(cache.keys[layer][:, :, :4], before.keys[layer][rows][:, :, :4])
        assert torch.equal(cache.values[layer][:, :, :4], before.values[layer][rows][:, :, :4])


def test_truncate_forgets_columns_and_their_padding() -> None:
    cache = KVCache(1, 1, 1, 2, capacity=6)
    cache.reserve(2)
    cache.reserve(2, torch.tensor([[False, True]]))
    cache.truncate(2)
    assert cache.length == 2 and not cache.padded and cache.lengths.tolist() == [2]
    cache.reserve(4)
    assert cache.lengths.tolist() == [6]
