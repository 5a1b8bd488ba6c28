"""checkpoint/vectors.py: word vectors as a folder, and as the beginning of an embedding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone import registry
from inkstone.checkpoint import atomic_folder
from inkstone.checkpoint.vectors import (
    find_files,
    initialize_embedding,
    load_vectors,
    open_vectors,
    save_vectors,
)
from inkstone.errors import CheckpointError, ModelError
from inkstone.models import gpt2
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train
from inkstone.vectors import formats
from inkstone.vectors.subwords import NGrams
from inkstone.vectors.table import Vectors

D = 8
WORDS = ("the", "river", "stone", "水")


def vectors(*, ngrams: bool = False) -> Vectors:
    random = np.random.default_rng(0)
    more: dict[str, Any] = {}
    if ngrams:
        table = random.normal(size=(20, D)).astype(np.float32)
        more = {"ngrams": NGrams(3, 6, 20), "ngram_matrix": table}
    counts = np.array([9, 4, 4, 1], np.int64)
    matrix = 5 + random.normal(size=(len(WORDS), D)).astype(np.float32)
    return Vectors(WORDS, matrix, counts=counts, **more)


def saved(folder: Path, *, ngrams: bool = False) -> Path:
    with atomic_folder(folder) as out:
        family = "fasttext" if ngrams else "word2vec"
        save_vectors(
            out, vectors(ngrams=ngrams), family=family, config={}, info={"scores": {"x": 1}}
        )
    return folder


@pytest.mark.parametrize("ngrams", [False, True])
def test_a_folder_comes_back_whole(ngrams: bool, tmp_path: Path) -> None:
    mine, again = vectors(ngrams=ngrams), load_vectors(saved(tmp_path / "model", ngrams=ngrams))
    assert again.words == mine.words and again.ngrams == mine.ngrams
    assert (again.matrix == mine.matrix).all()
    assert again.counts is not None and again.counts.tolist() == [9, 4, 4, 1]
    assert (again["stones"] == mine["stones"]).all() if ngrams else "stones" not in again
    assert again.info["scores"] == {"x": 1}
    assert "| x | 1 |" in (tmp_path / "model" / "README.md").read_text()
    # of a run, its model; of a file, the file
    assert open_vectors(tmp_path).words == mine.words
    formats.write(mine, tmp_path / "v.txt", "word2vec")
    assert (open_vectors(tmp_path / "v.txt").matrix == mine.matrix).all()
    assert find_files(tmp_path / "v.txt") == [tmp_path / "v.txt"]
    assert {p.parent for p in find_files(tmp_path)} == {tmp_path / "model"}
    with pytest.raises(CheckpointError, match="holds no word vectors"):
        open_vectors(tmp_path / "none")


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return apply


def cut(folder: Path) -> None:
    raw = (folder / "vectors.safetensors").read_bytes()
    (folder / "vectors.safetensors").write_bytes(raw[:-3])


def add_ngrams(content: dict[str, Any]) -> None:
    content |= {"min_n": 1, "max_n": 2, "buckets": 3}


def put(key: str, value: object) -> Callable[[Path], None]:
    """Make `value` the first of a list in words.json."""
    return edit("words.json", lambda content: content[key].__setitem__(0, value))


def without_counts(content: dict[str, Any]) -> None:
    content["words"].append("x")
    del content["counts"]


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "word more": (edit("words.json", lambda c: c["words"].append("x")), "counts do not fit"),
    "word more, no counts": (edit("words.json", without_counts), "do not fit a matrix"),
    "word twice": (put("words", "river"), "stands twice"),
    "word a number": (put("words", 7), "no list of words"),
    "count a float": (put("counts", 1.5), "counts"),
    "huge count": (put("counts", 1 << 63), "counts"),
    "size": (edit("config.json", lambda c: c.update(vocab_size=1 << 40)), "instead of"),
    "length": (edit("config.json", lambda c: c.update(d_model=-1)), "instead of"),
    "buckets": (edit("config.json", lambda c: c.update(buckets=1 << 40)), "buckets"),
    "no ngrams": (edit("config.json", add_ngrams), "instead of"),
    "cut off": (cut, "truncated"),
    "no weights": (lambda f: (f / "vectors.safetensors").unlink(), "No such file"),
    "no words": (lambda f: (f / "words.json").unlink(), "No such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_a_typed_error(name: str, tmp_path: Path) -> None:
    damage, message = DAMAGE[name]
    folder = saved(tmp_path / "model")
    damage(folder)
    with pytest.raises(CheckpointError):  # the manifest tells
        load_vectors(folder)
    (folder / "sha256.json").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_vectors(folder)
    assert message in str(caught.value)


# --- the beginning of an embedding ---------------------------------------------------------------


@pytest.fixture(scope="module", params=["word", "bpe", "wordpiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = ["The river and the stone and the riverbank, 水 水", "a stone in the river"] * 20
    return train(texts, TokenizerConfig(kind=request.param, vocab_size=400))


def ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(f"a {text}")[1:]


def test_words_begin_with_their_vectors(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, max_seq_len=8, d_model=D, n_layers=1, n_heads=1
    )
    model = gpt2.Model(config)
    before = model.embed.weight.detach().clone()
    found = initialize_embedding(model, tokenizer, vectors())
    after = model.embed.weight.detach()
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert len(changed) == found >= 3
    scale = None
    for word in ("the", "river", "stone"):
        token = ids(tokenizer, word)
        assert len(token) == 1
        factors = after[token[0]] / torch.from_numpy(vectors()[word])
        scale = factors[0] if scale is None else scale
        torch.testing.assert_close(factors, scale.expand(D))
    spread = after[changed].square().mean().sqrt()
    torch.testing.assert_close(spread, before.std(), rtol=1e-4, atol=0)
    the = [t for t in range(tokenizer.vocab_size) if tokenizer.token_bytes(t).strip() == b"The"]
    for token in the:  # in lower case
        assert token not in changed or torch.allclose(after[token], after[ids(tokenizer, "the")[0]])
    assert not set(changed) & tokenizer.special_ids


def test_ngrams_give_every_word_a_vector(tokenizer: Tokenizer) -> None:
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, max_seq_len=8, d_model=D, n_layers=1, n_heads=1
    )
    whole, parts = gpt2.Model(config), gpt2.Model(config)
    assert initialize_embedding(parts, tokenizer, vectors(ngrams=True)) > initialize_embedding(
        whole, tokenizer, vectors()
    )


def test_what_does_not_fit(tokenizer: Tokenizer) -> None:
    config = gpt2.Config(
        vocab_size=tokenizer.vocab_size, max_seq_len=8, d_model=4, n_layers=1, n_heads=1
    )
    model = gpt2.Model(config)
    before = model.embed.weight.detach().clone()
    with pytest.raises(ModelError, match="8 numbers do not fit an embedding of 4") as caught:
        initialize_embedding(model, tokenizer, vectors())
    assert "set model.d_model=8" in str(caught.value)
    foreign = Vectors(("zzz", "qqq"), np.ones((2, 4), np.float32))
    with pytest.raises(ModelError, match="none of the 2 words with a vector is a token"):
        initialize_embedding(model, tokenizer, foreign)
    assert (model.embed.weight == before).all()


SMALL = {"d_model": D, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_ff": 16, "max_seq_len": 16}
NEURAL = [
    name
    for name in registry.names("models")
    if getattr(registry.load("models", name), "KIND", "") in ("causal", "encoder", "seq2seq")
]


@pytest.mark.parametrize("family", NEURAL)
def test_every_family_takes_them(family: str) -> None:
    texts = ["the river and the stone"] * 4
    tokenizer = train(texts, TokenizerConfig(kind="word", vocab_size=32))
    module = registry.load("models", family)
    given = SMALL | {"start_id": 0, "pad_id": 0, "eos_id": 0}
    fields = {k: v for k, v in given.items() if k in module.Config.model_fields}
    model = module.Model(module.Config(vocab_size=tokenizer.vocab_size, **fields))
    shapes = {n: p.shape for n, p in model.named_parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert initialize_embedding(model, tokenizer, vectors()) == 3
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) == 1 and shapes[changed[0]] == (tokenizer.vocab_size, D)
