"""Shards give back what was written, and say which file is damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.errors import DataError

documents = st.lists(st.lists(st.integers(0, 98), max_size=40), min_size=1, max_size=30)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(documents, st.integers(0, 10**6))
def test_round_trip_over_many_shards(
    make_corpus: Callable[..., Corpus], docs: list[list[int]], pick: int
) -> None:
    corpus = make_corpus(docs, shard_tokens=64)
    flat = [i for d in docs for i in [*d, 99]]
    assert corpus.n_tokens == len(flat) and corpus.n_documents == len(docs)
    assert corpus.tokens(0, len(flat)).tolist() == flat
    start = pick % (len(flat) + 1)
    stop = start + (pick // 7) % (len(flat) + 1 - start)
    assert corpus.tokens(start, stop).tolist() == flat[start:stop]
    for number, ids in enumerate(docs):
        assert corpus.document(number).tolist() == [*ids, 99]


def test_many_documents_in_one_call_equal_one_by_one(tmp_path: Path) -> None:
    docs = [[1, 2, 3], [], [4], [5, 6]]
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    together = ShardWriter(folders[0], vocab_size=100, eos_id=99, shard_tokens=1024)
    flat = np.array([i for d in docs for i in d], np.uint32)
    together.write(flat, np.cumsum([0, *map(len, docs)]))
    together.finish(tokenizer="t", n_bytes=6)
    single = ShardWriter(folders[1], vocab_size=100, eos_id=99, shard_tokens=1024)
    for d in docs:
        single.write(np.array(d, np.uint32), np.array([0, len(d)]))
    single.finish(tokenizer="t", n_bytes=6)
    assert Corpus(folders[0]).fingerprint == Corpus(folders[1]).fingerprint


@pytest.mark.parametrize(("vocab_size", "width"), [(65536, 2), (65537, 4)])
def test_ids_take_two_bytes_where_they_fit(
    make_corpus: Callable[..., Corpus], vocab_size: int, width: int
) -> None:
    assert make_corpus([[1, 2]], vocab_size=vocab_size).dtype.itemsize == width


def test_a_flipped_bit_is_named(make_corpus: Callable[..., Corpus]) -> None:
    corpus = make_corpus([[1, 2, 3]])
    path = corpus.folder / "shard-00000.bin"
    data = bytearray(path.read_bytes())
    data[0] ^= 4
    path.write_bytes(data)
    Corpus(corpus.folder)  # sizes fit
    with pytest.raises(DataError, match=r"shard-00000\.bin is damaged"):
        Corpus(corpus.folder, verify=True)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_truncated_and_missing_shards_are_named(
    make_corpus: Callable[..., Corpus], suffix: str
) -> None:
    corpus = make_corpus([[1, 2, 3]])
    path = corpus.folder / f"shard-00000{suffix}"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=path.name):
        Corpus(corpus.folder)
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        Corpus(corpus.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "<u8"},
        {"format": 2},
        {
            "shards": [
                {"name": "../x", "tokens": 1, "documents": 1, "sha256_bin": "", "sha256_idx": ""}
            ]
        },
        {"extra": 1},
        {"n_bytes": -1},
    ],
)
def test_hostile_manifests_are_refused(
    make_corpus: Callable[..., Corpus], change: dict[str, object]
) -> None:
    folder = make_corpus([[1]]).folder
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match="manifest"):
        Corpus(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_broken_manifests_are_refused(make_corpus: Callable[..., Corpus], content: bytes) -> None:
    folder = make_corpus([[1]]).folder
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="manifest"):
        Corpus(folder)
