"""models/glove.py: the fit to log X, and what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from inkstone.models import glove
from inkstone.vectors import compiled
from inkstone.vectors.vocabulary import Rows, Vocabulary, from_texts

pytestmark = pytest.mark.skipif(not compiled.available(), reason="needs the extra `vectors`")


def test_products_become_logarithms_of_counts(tmp_path: Path) -> None:
    """Equation 7 with D large enough: w·c + b + b' = log X for every pair."""
    random = np.random.default_rng(0)
    texts = [[f"w{n}" for n in np.minimum(7, random.geometric(0.3, 40))] for _ in range(30)]
    vocabulary, words = from_texts(texts)
    config = glove.Config(d_model=12, x_max=1.0, epochs=400, lr=0.1, window=3, workers=1)
    pairs = glove.count_pairs(config, vocabulary, words, tmp_path)
    model = glove.Model(config, vocabulary, pairs)
    model.advance()
    w, c = model.arrays["w"], model.arrays["c"]
    found = w[:, :12] @ c[:, :12].T + w[:, 12:] + c[:, 12]
    records = pairs.records
    np.testing.assert_allclose(found[records["i"], records["j"]], np.log(records["x"]), atol=0.05)
    assert model.loss() > 0


def test_subjects_are_told_apart(two_subjects: tuple[Vocabulary, Rows]) -> None:
    config = glove.Config(d_model=6, x_max=10, window=5, epochs=30)
    made = glove.Model.fit(config, *two_subjects)
    for word, own in (("river", "stone moss water rain bank"), ("flute", "string drum song choir")):
        near = [n.word for n in made.most_similar(word, top=5) if n.word != "and"]
        assert len(set(near) & set(own.split())) >= 3, near
    again = glove.Model.fit(config.model_copy(update={"workers": 1}), *two_subjects)
    assert again.matrix.shape == made.matrix.shape == (13, 6)
