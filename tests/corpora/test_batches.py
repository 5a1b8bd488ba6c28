"""Every window once an epoch, every target scored once, positions resume exactly."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inkstone.corpora.batches import Batch, BatchStream, windows
from inkstone.corpora.shards import Corpus
from inkstone.errors import DataError, RunError

IGNORE = -100
relaxed = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def _documents(n_tokens: int) -> list[list[int]]:
    """Documents whose concatenation (with ends) has n_tokens tokens."""
    flat = [(i * 7 + i // 13) % 98 for i in range(n_tokens - 1)]
    return [flat]


@relaxed
@given(st.integers(2, 200), st.integers(1, 17), st.integers(1, 5), st.data())
def test_windows_score_every_target_once(
    make_corpus: Callable[..., Corpus], n: int, seq_len: int, batch_size: int, data: st.DataObject
) -> None:
    corpus = make_corpus(_documents(n))
    stride = data.draw(st.integers(1, seq_len))
    flat = corpus.tokens(0, n).tolist()
    scored = []
    for batch in windows(corpus, seq_len, stride=stride, batch_size=batch_size):
        assert batch.input_ids.shape[1] == seq_len
        for row, targets in zip(batch.input_ids.tolist(), batch.targets.tolist(), strict=True):
            for i, t in enumerate(targets):
                if t != IGNORE:
                    scored.append((row[i], t, i))
    assert [(a, b) for a, b, _ in scored] == list(itertools.pairwise(flat))
    enough = seq_len - stride
    assert all(i >= min(place, enough) for place, (_, _, i) in enumerate(scored))


def test_windows_stop_at_max_tokens(make_corpus: Callable[..., Corpus]) -> None:
    corpus = make_corpus(_documents(100))
    batches = list(windows(corpus, 8, max_tokens=20))
    assert sum(int((b.targets != IGNORE).sum()) for b in batches) == 20


@relaxed
@given(st.integers(20, 300), st.integers(1, 9), st.integers(1, 6), st.integers(0, 2**62))
def test_every_window_once_an_epoch(
    make_corpus: Callable[..., Corpus], n: int, seq_len: int, batch_size: int, seed: int
) -> None:
    corpus = make_corpus(_documents(n))
    stream = BatchStream(corpus, batch_size=batch_size, seq_len=seq_len, seed=seed)
    per_epoch = stream._sources[0].per_epoch
    assert (per_epoch + 2) * seq_len >= n - 1  # at most two windows' tokens are left out
    starts = stream._sources[0].starts(0, 2 * per_epoch).tolist()
    for epoch in (starts[:per_epoch], starts[per_epoch:]):
        assert len(set(epoch)) == per_epoch
        assert len({s % seq_len for s in epoch}) == 1
        assert min(epoch) >= 0 and max(epoch) + seq_len + 1 <= n


@relaxed
@given(st.integers(0, 40), st.booleans())
def test_state_continues_exactly(
    make_corpus: Callable[..., Corpus], steps: int, masked: bool
) -> None:
    a, b = make_corpus([[1, 2, 3]] * 30), make_corpus([[4, 5]] * 40)

    def stream() -> BatchStream:
        return BatchStream(
            [(a, 2.0), (b, 1.0)], batch_size=3, seq_len=5, seed=9, mask_documents=masked
        )

    first = stream()
    for _ in range(steps):
        next(first)
    second = stream()
    second.load_state(first.state())
    for _ in range(5):
        x, y = next(first), next(second)
        assert torch.equal(x.input_ids, y.input_ids) and torch.equal(x.targets, y.targets)


def test_mixing_is_exact_to_a_row(make_corpus: Callable[..., Corpus]) -> None:
    corpora = [make_corpus([[i] * 50] * 4) for i in (1, 2, 3)]
    weights = [5.0, 3.0, 2.0]
    stream = BatchStream(list(zip(corpora, weights, strict=True)), batch_size=7, seq_len=4)
    seen: Counter[int] = Counter()
    for _ in range(30):
        for row in next(stream).input_ids.tolist():
            seen[min(row)] += 1
        total = sum(seen.values())
        for i, w in zip((1, 2, 3), weights, strict=True):
            assert abs(seen[i] - total * w / 10) <= 1


def test_masked_documents_keep_attention_and_loss_inside(
    make_corpus: Callable[..., Corpus],
) -> None:
    corpus = make_corpus([[1, 2], [3], [4, 5, 6]])
    batch = next(windows(corpus, 8, mask_documents=True))
    assert batch.segment_ids is not None
    assert batch.input_ids[0].tolist() == [1, 2, 99, 3, 99, 4, 5, 6]
    assert batch.segment_ids[0].tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert batch.targets[0].tolist() == [2, 99, IGNORE, 99, IGNORE, 5, 6, 99]


def test_a_corpus_shorter_than_a_window_still_trains(make_corpus: Callable[..., Corpus]) -> None:
    batch = next(BatchStream(make_corpus([[1, 2, 3]]), batch_size=2, seq_len=10))
    assert batch.input_ids.shape == (2, 10)
    assert (batch.targets[0] != IGNORE).sum() == 3


def test_batches_split_without_loss() -> None:
    ids = torch.arange(35).view(7, 5)
    parts = list(Batch(ids, ids + 1, ids).split(3))
    assert [len(p) for p in parts] == [3, 3, 1]
    assert torch.equal(torch.cat([p.targets for p in parts]), ids + 1)


def test_impossible_mixes_are_named(make_corpus: Callable[..., Corpus]) -> None:
    corpus = make_corpus([[1, 2]])
    with pytest.raises(DataError, match="weight above zero"):
        BatchStream([(corpus, 0.0)], batch_size=1, seq_len=2)
    with pytest.raises(DataError, match="needs two"):
        BatchStream(make_corpus([[]]), batch_size=1, seq_len=2)
    stream = BatchStream(corpus, batch_size=1, seq_len=2)
    with pytest.raises(RunError, match="does not fit"):
        stream.load_state({"drawn": [1, 2]})
