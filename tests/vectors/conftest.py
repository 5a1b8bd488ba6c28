"""A corpus of two subjects that share no word, and its vocabulary."""

from __future__ import annotations

import numpy as np
import pytest

from inkstone.vectors.vocabulary import Rows, Vocabulary, from_texts

SUBJECTS = ("stone river moss water rain bank", "string drum flute song choir tune")


@pytest.fixture(scope="session")
def two_subjects() -> tuple[Vocabulary, Rows]:
    random = np.random.default_rng(0)
    texts = [
        [*random.choice(SUBJECTS[number % 2].split(), size=30).tolist(), "and"]
        for number in range(400)
    ]
    return from_texts(texts, min_count=5)
