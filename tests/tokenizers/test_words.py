"""tokenizers/words.py: names of tokens that people can read and vectors be looked up by."""

from __future__ import annotations

import pytest

from inkstone.tokenizers.config import Kind, TokenizerConfig
from inkstone.tokenizers.train import train
from inkstone.tokenizers.words import word_names

TEXTS = ["the water under the underwater waterfall", "房间很好 water 房间", "水水水 the"] * 30


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram", "char", "byte", "word"])
def test_names_differ_and_hold_no_space(kind: Kind) -> None:
    tokenizer = train(TEXTS, TokenizerConfig(kind=kind, vocab_size=400))
    names = word_names(tokenizer)
    used = [name for name in names if name]
    assert len(names) == tokenizer.vocab_size and len(set(used)) == len(used)
    assert not any(c.isspace() for name in used for c in name)
    assert all(not names[token] for token in tokenizer.special_ids)
    if kind in ("bpe", "word"):
        shown = [names[i] for i in tokenizer.encode("under the water") if names[i]]
        assert "water" in shown and "the" in shown
    if kind in ("bpe", "unigram", "char", "wordpiece"):
        assert "水" in names or "##水" in names


def test_a_piece_is_not_the_word_that_it_spells() -> None:
    tokenizer = train(TEXTS, TokenizerConfig(kind="bpe", vocab_size=400))
    names, spelled = word_names(tokenizer), tokenizer.token_bytes
    word, piece = names.index("water"), names.index("##water")
    assert spelled(word) == b" water" and spelled(piece) == b"water"
    assert "房间" in names
