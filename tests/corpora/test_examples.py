"""Encoded examples on disk, and streams in which every example comes once an epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.corpora.examples import ExampleStream, ExampleTable, in_batches
from inkstone.errors import DataError, RunError

LENGTHS = st.lists(st.integers(1, 200), min_size=1, max_size=300)


def numbers(batch: Sequence[int]) -> list[int]:
    return list(batch)


def test_a_table_gives_back_what_was_written(tmp_path: Path) -> None:
    rows = [{"ids": list(range(n)), "label": [n % 3]} for n in (3, 0, 5)]
    table = ExampleTable.write(tmp_path, iter(rows))
    assert len(table) == 3 and table.lengths("ids").tolist() == [3, 0, 5]
    for row, written in zip((table[i] for i in range(3)), rows, strict=True):
        assert {k: v.tolist() for k, v in row.items()} == written
    assert ExampleTable(tmp_path).fingerprint == table.fingerprint
    other = tmp_path / "other"
    other.mkdir()
    rows[2]["label"] = [0]
    assert ExampleTable.write(other, rows).fingerprint != table.fingerprint


def test_a_table_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    ExampleTable.write(tmp_path, [{"ids": [1, 2, 3]}, {"ids": [4]}])
    (tmp_path / "ids.flat").write_bytes(b"\0" * 12)
    with pytest.raises(DataError, match="cut short"):
        ExampleTable(tmp_path)


@settings(deadline=None, max_examples=50)
@given(LENGTHS, st.integers(1, 40), st.booleans(), st.integers(0, 5))
def test_every_example_comes_exactly_once_an_epoch(
    lengths: list[int], size: int, by_tokens: bool, seed: int
) -> None:
    how = {"batch_tokens": 16 * size} if by_tokens else {"batch_examples": size}
    stream = ExampleStream(lengths, numbers, seed=seed, **how)
    for epoch in range(2):
        seen: list[int] = []
        while stream.epoch < epoch + 1:
            batch = next(stream)
            seen += batch
            if by_tokens and len(batch) > 1:
                assert len(batch) * max(lengths[i] for i in batch) <= 16 * size
            elif not by_tokens:
                assert len(batch) <= size
        assert sorted(seen) == list(range(len(lengths)))


@settings(deadline=None, max_examples=30)
@given(LENGTHS, st.integers(0, 30))
def test_a_stream_goes_on_where_it_was(lengths: list[int], steps: int) -> None:
    stream = ExampleStream(lengths, numbers, batch_examples=7, seed=1)
    for _ in range(steps):
        next(stream)
    other = ExampleStream(lengths, numbers, batch_examples=7, seed=1)
    other.load_state(stream.state())
    assert other.epoch == stream.epoch
    assert [next(other) for _ in range(5)] == [next(stream) for _ in range(5)]


def test_batches_hold_little_padding_and_come_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(5, 400, 5000)
    stream = ExampleStream(lengths, numbers, batch_examples=32)
    batches = [next(stream) for _ in range(stream.batches_per_epoch)]
    padded = sum(len(b) * int(lengths[b].max()) for b in batches)
    assert padded < 1.05 * lengths.sum()
    longest = [int(lengths[b].max()) for b in batches]
    assert abs(np.corrcoef(longest[:-1], longest[1:])[0, 1]) < 0.2
    again = [next(stream) for _ in range(stream.batches_per_epoch)]
    assert again != batches


def test_two_lengths_are_both_kept_in_bounds() -> None:
    random = np.random.default_rng(1)
    lengths = np.stack([random.integers(1, 60, 900), random.integers(1, 60, 900)], 1)
    stream = ExampleStream(lengths, numbers, batch_tokens=500)
    for _ in range(stream.batches_per_epoch):
        batch = next(stream)
        assert len(batch) == 1 or len(batch) * int(lengths[batch].max(0).sum()) <= 500


def test_a_position_of_other_examples_is_refused() -> None:
    stream = ExampleStream([3] * 10, numbers, batch_examples=2)
    for state in ({}, {"epoch": 0, "batch": 1, "examples": 11}, {"epoch": 0, "batch": 9},
                  {"epoch": 0, "batch": 5, "examples": 10}):  # fmt: skip
        with pytest.raises(RunError, match="does not fit"):
            stream.load_state(state)
    with pytest.raises(DataError, match="no example"):
        ExampleStream([], numbers, batch_examples=2)


def test_prediction_batches_hold_every_row_once() -> None:
    lengths = np.random.default_rng(2).integers(1, 50, (300, 2))
    batches = list(in_batches(lengths, 400))
    assert sorted(np.concatenate(batches)) == list(range(300))
    assert all(len(b) == 1 or len(b) * int(lengths[b].max(0).sum()) <= 400 for b in batches)
