"""models/word2vec.py and fasttext.py: what they learn, and settings that cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from inkstone.errors import ModelError
from inkstone.models import fasttext, word2vec
from inkstone.vectors import compiled
from inkstone.vectors.table import Vectors
from inkstone.vectors.vocabulary import Rows, Vocabulary, from_texts

needs_numba = pytest.mark.skipif(not compiled.available(), reason="needs the extra `vectors`")
Words = tuple[Vocabulary, Rows]
SMALL: dict[str, Any] = {"d_model": 8, "sample": 0.0, "window": 4, "lr": 0.05, "epochs": 5}


def told_apart(vectors: Vectors) -> bool:
    """Whether every word is nearer to each of its own subject than to any of the other."""
    sides = (
        ("stone", "river", "moss", "water", "rain", "bank"),
        ("string", "drum", "flute", "song", "choir", "tune"),
    )
    unit = vectors.unit
    near = [[[unit[vectors.row[a]] @ unit[vectors.row[b]] for b in y] for a in x]
            for x in sides for y in sides]  # fmt: skip
    same = min(np.min(near[0]), np.min(near[3]))
    return bool(same > np.max(near[1]))


@needs_numba
@pytest.mark.parametrize("architecture", ["skipgram", "cbow"])
@pytest.mark.parametrize("loss", ["negative", "hierarchical"])
def test_subjects_are_told_apart(architecture: str, loss: str, two_subjects: Words) -> None:
    for workers in (1, 2):
        config = word2vec.Config(architecture=architecture, loss=loss, workers=workers, **SMALL)
        model = word2vec.Model(config, *two_subjects)
        untrained = word2vec.Model(config.model_copy(update={"lr": 1e-9}), *two_subjects)
        untrained.advance()
        assert not told_apart(untrained.vectors())
        assert told_apart(model.fit())
        assert model.loss() < 0.9 * untrained.loss()


@needs_numba
def test_rates_fall_to_the_end(two_subjects: Words) -> None:
    model = word2vec.Model(word2vec.Config(**SMALL, min_lr=0.01), *two_subjects)
    rates = [model.lr(chunk) for chunk in range(model.total + 1)]
    assert rates[0] == 0.05 and rates[-1] == pytest.approx(0.01) and rates == sorted(rates)[::-1]
    low = word2vec.Model(word2vec.Config(**SMALL | {"lr": 1e-5}), *two_subjects)
    assert low.lr(0) == low.lr(low.total) == 1e-5  # min_lr's default is above it


@needs_numba
def test_without_ngrams_fasttext_is_word2vec(two_subjects: Words) -> None:
    one: dict[str, Any] = SMALL | {"workers": 1}
    plain = word2vec.Model(word2vec.Config(**one), *two_subjects)
    whole = fasttext.Model(fasttext.Config(**one, max_n=0, buckets=1), *two_subjects)
    words = len(two_subjects[0])
    plain.arrays["inputs"][:] = whole.arrays["inputs"][:words]
    assert (plain.fit().matrix == whole.fit().matrix).all()


@needs_numba
def test_fasttext_words_are_made_of_their_ngrams() -> None:
    texts = [["walking", "walked", "home"], ["talking", "talked", "house"]] * 200
    words = from_texts(texts, min_count=1)
    model = fasttext.Model(fasttext.Config(d_model=8, sample=0.0, buckets=500), *words)
    made = model.fit()
    rows = made.ngrams
    assert rows is not None and made.ngram_matrix is not None
    own = model.arrays["inputs"][made.row["walked"]]
    ngrams = made.ngram_matrix[rows.rows("walked")]
    np.testing.assert_allclose(
        made["walked"], (own + ngrams.sum(0)) / (1 + len(ngrams)), rtol=1e-5, atol=1e-7
    )
    assert "walks" not in made and np.isfinite(made["walks"]).all()
    assert made.similarity("walks", "walked") > made.similarity("walks", "house")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"d_model": 0}, "d_model"),
        ({"negative": 0}, "negative"),
        ({"window": 0}, "window"),
        ({"lr": float("inf")}, "lr"),
        ({"architecture": "cboww"}, "architecture"),
        ({"windows": 5}, "windows"),
        ({"min_n": 5, "max_n": 3}, "min_n 5 is above max_n 3"),
        ({"buckets": 1 << 40}, "buckets"),
    ],
)
def test_settings_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        fasttext.Config(**fields)


def test_more_than_memory_is_a_named_error(
    two_subjects: Words, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("inkstone.vectors.trainer.np.empty", refuse)
    with pytest.raises(ModelError, match="do not fit in memory"):
        word2vec.Model(word2vec.Config(), *two_subjects)
