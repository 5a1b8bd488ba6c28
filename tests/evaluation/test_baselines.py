"""Baselines on the tokens and documents of the model."""

from __future__ import annotations

import lzma
import math
from pathlib import Path

import numpy as np
import pytest

from inkstone.corpora.shards import Corpus, ShardWriter
from inkstone.errors import DataError
from inkstone.evaluation import baselines
from inkstone.models import ngram
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

WORDS = """the a cat dog sat ran on under mat hill and then while quickly slowly""".split()  # noqa: SIM905


def _texts(seed: int, count: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, size=rng.integers(5, 60))) + "." for _ in range(count)]


def _corpus(folder: Path, texts: list[str], tokenizer: Tokenizer) -> Corpus:
    folder.mkdir()
    writer = ShardWriter(
        folder, vocab_size=tokenizer.vocab_size, eos_id=tokenizer.eos_id, shard_tokens=2000
    )
    for text in texts:
        writer.write(*tokenizer.encode_arrays([text]))
    writer.finish(tokenizer=tokenizer.fingerprint(), n_bytes=sum(len(t) for t in texts))
    return Corpus(folder)


Made = tuple[Corpus, Tokenizer, list[str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    texts = _texts(0, 300)
    tokenizer = train(texts, TokenizerConfig(vocab_size=300))
    return _corpus(tmp_path_factory.mktemp("made") / "shards", texts, tokenizer), tokenizer, texts


def test_kneser_ney_is_the_n_gram_model_on_the_same_tokens(
    made: Made,
) -> None:
    corpus, tokenizer, _ = made
    held_out = _texts(1, 20)
    got = baselines.kneser_ney(corpus, held_out, tokenizer, order=3)
    ids = [i for text in held_out for i in (*tokenizer.encode(text), tokenizer.eos_id)]
    config = ngram.Config(vocab_size=tokenizer.vocab_size, order=3, boundary_id=tokenizer.eos_id)
    model = ngram.Model(config).fit(corpus.tokens(0, corpus.n_tokens))
    nats = -model.log_probs(np.array(ids)).sum()
    n_bytes = sum(len(t.encode()) for t in held_out)
    assert got.bits_per_byte == pytest.approx(nats / math.log(2) / n_bytes)
    assert got.perplexity == pytest.approx(math.exp(nats / len(ids)))
    assert got.perplexity is not None and got.perplexity < 2 * len(WORDS)
    assert "order 3" in got.rule


def test_all_of_them_on_the_same_documents(
    made: Made,
) -> None:
    corpus, tokenizer, texts = made
    held_out = _texts(1, 20)
    table = {row.name: row for row in baselines.all(corpus, held_out, tokenizer)}
    assert list(table) == ["Kneser-Ney 5-gram", "xz, after training text", "xz"]
    best, after, alone = (row.bits_per_byte for row in table.values())
    assert 0 < best < after < alone < 8
    given = baselines.all(corpus, held_out, tokenizer, train_texts=texts)
    assert given == list(table.values())  # the tokens decode to the documents


def test_xz_is_no_worse_than_the_program() -> None:
    train_texts, held_out = _texts(0, 300), _texts(1, 50)
    joined = "\0".join(held_out).encode() + b"\0"
    program = 8 * len(lzma.compress(joined, preset=9 | lzma.PRESET_EXTREME))
    n_bytes = sum(len(t.encode()) for t in held_out)
    after, alone = baselines.xz(train_texts, held_out)
    assert alone.bits_per_byte <= program / n_bytes
    assert after.bits_per_byte < alone.bits_per_byte
    assert after.perplexity is None


def test_xz_knows_what_it_has_seen() -> None:
    rng = np.random.default_rng(0)
    noise = "".join(rng.choice(list("abcdefgh"), 20_000))
    after, alone = baselines.xz([noise], [noise])
    assert after.bits_per_byte < 0.05 < 2.5 < alone.bits_per_byte


def test_a_limit_on_training_text_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_XZ_BYTES", 1000)
    after, _ = baselines.xz(_texts(0, 300), _texts(1, 5))
    assert "of which the first" in after.rule


def test_short_tokens_get_a_higher_order(made: Made, tmp_path: Path) -> None:
    _, _, texts = made
    tokenizer = train(["x"], TokenizerConfig(kind="byte"))
    corpus = _corpus(tmp_path / "shards", texts, tokenizer)
    assert baselines.kneser_ney(corpus, _texts(1, 5), tokenizer).name == "Kneser-Ney 7-gram"


def test_nothing_held_out_is_an_error(made: Made) -> None:
    corpus, tokenizer, _ = made
    for texts in ([], [""]):
        with pytest.raises(DataError, match="no held-out text"):
            baselines.all(corpus, texts, tokenizer)
