"""fastText: word vectors made of character n-grams, so that unseen words have vectors, too.

Bojanowski, Grave, Joulin and Mikolov, "Enriching Word Vectors with Subword Information" (2017).
Skip-gram with negative sampling as in `word2vec.py`, where the vector of a word is that of the word
itself together with those of its n-grams (section 3.2):

    s(w, c) = Σ_{g in the n-grams of w} z_g · v_c

As in the released code their mean stands in for the sum, and n-grams share hashed buckets. Shapes:
V words, D d_model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from inkstone.models import word2vec
from inkstone.vectors.subwords import NGrams
from inkstone.vectors.table import Vectors
from inkstone.vectors.trainer import matrix
from inkstone.vectors.vocabulary import Vocabulary

KIND = "vectors"
EPOCHS = word2vec.EPOCHS
MEANS_AT_ONCE = 1 << 14  # words whose n-grams are gathered together


class Config(word2vec.Config):
    """Word2Vec's settings with fastText's defaults, and the n-grams.

    Attributes:
        min_n: Characters of the shortest n-gram.
        max_n: And of the longest; 0 leaves words whole.
        buckets: Rows that all n-grams share.
    """

    sample: float = Field(default=1e-4, ge=0, le=1)
    lr: float = Field(default=0.05, gt=0, le=10)
    min_n: int = Field(default=3, ge=1, le=64)
    max_n: int = Field(default=6, ge=0, le=64)
    buckets: int = Field(default=2_000_000, ge=1, le=1 << 30)

    @model_validator(mode="after")
    def _lengths_in_order(self) -> Config:
        if self.max_n and self.max_n < self.min_n:
            raise ValueError(f"min_n {self.min_n} is above max_n {self.max_n}")
        return self


PRESETS: dict[str, Config] = {}


class Model(word2vec.Model):
    """Trains word and n-gram vectors; arguments as in `word2vec.Model`."""

    config: Config

    def vectors(self) -> Vectors:
        """Every word's mean, and the n-grams for words outside the vocabulary."""
        inputs, size = self.arrays["inputs"], len(self.vocabulary)
        starts = self._group_starts
        means = matrix(size, self.config.d_model)
        for first in range(0, size, MEANS_AT_ONCE):
            part = starts[first : first + MEANS_AT_ONCE + 1]
            rows = inputs[self._groups[part[0] : part[-1]]]
            means[first : first + len(part) - 1] = np.add.reduceat(rows, part[:-1] - part[0])
        means /= np.diff(starts)[:, None]
        return Vectors(
            self.vocabulary.words,
            means,
            counts=self.vocabulary.counts,
            ngrams=self._ngrams,
            ngram_matrix=inputs[size:].copy(),
        )

    @property
    def _ngrams(self) -> NGrams:
        return NGrams(self.config.min_n, self.config.max_n, self.config.buckets)

    def _input_rows(
        self, vocabulary: Vocabulary
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
        size, ngrams = len(vocabulary), self._ngrams
        groups = [
            np.concatenate([[row], ngrams.rows(word) + size])
            for row, word in enumerate(vocabulary.words)
        ]
        starts = np.zeros(size + 1, np.int64)
        np.cumsum([len(group) for group in groups], out=starts[1:])
        return starts, np.concatenate(groups).astype(np.int32), size + self.config.buckets
