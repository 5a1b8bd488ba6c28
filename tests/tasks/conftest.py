"""Small tokenizers of every kind, and a corpus in their ids."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.roles import BERT, ROBERTA, T5
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

WORDS = "the old walker walked slowly, walking over unbelievable hills. Stones! rivers? and birds."
ROLES = {"bert": ("wordpiece", BERT), "roberta": ("bpe", ROBERTA), "t5": ("bpe", T5)}


def documents(count: int = 60) -> list[str]:
    """Different documents of 5 to 64 words."""
    words = WORDS.split()
    random = np.random.default_rng(0)
    return [" ".join(random.choice(words, random.integers(5, 65))) for _ in range(count)]


@pytest.fixture(scope="session")
def tokenizers() -> dict[str, Tokenizer]:
    """By the family whose control tokens they have."""
    return {
        name: train(documents(), TokenizerConfig(kind=kind, vocab_size=400), roles=roles)
        for name, (kind, roles) in ROLES.items()
    }


@pytest.fixture
def make_corpus(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> Callable[..., Corpus]:
    """(tokenizer's name, texts) → their shards."""

    def make(name: str, texts: list[str] | None = None) -> Corpus:
        tokenizer = tokenizers[name]
        folder = tmp_path / f"corpus-{name}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        writer = ShardWriter(
            folder, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, shard_tokens=2048
        )
        flat, offsets = tokenizer.encode_arrays(texts or documents())
        writer.write(flat, offsets)
        writer.finish(tokenizer="test", n_bytes=0)
        return Corpus(folder)

    return make
