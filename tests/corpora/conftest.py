"""Small corpora made of known ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inkstone.corpora.shards import Corpus, ShardWriter

EOS = 99


@pytest.fixture
def make_corpus(tmp_path: Path) -> Callable[..., Corpus]:
    """Write documents (lists of ids below 99) as a corpus."""
    made = 0

    def make(documents: list[list[int]], shard_tokens: int = 1024, vocab_size: int = 100) -> Corpus:
        nonlocal made
        made += 1
        folder = tmp_path / f"corpus-{made}"
        folder.mkdir()
        writer = ShardWriter(folder, vocab_size=vocab_size, eos_id=EOS, shard_tokens=shard_tokens)
        for ids in documents:
            writer.write(np.array(ids, np.uint32), np.array([0, len(ids)]))
        writer.finish(tokenizer="test", n_bytes=sum(map(len, documents)))
        return Corpus(folder)

    return make
