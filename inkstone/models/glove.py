"""GloVe: word vectors whose products are the logarithms of co-occurrence counts.

Pennington, Socher and Manning, "GloVe: Global Vectors for Word Representation" (2014):

    (8)  J = Σ_{i,j} f(X_ij) (w_i · w̃_j + b_i + b̃_j − log X_ij)²
    (9)  f(x) = (x / x_max)^α below x_max, else 1

X_ij sums 1/distance over all places where word j stands within the window of word i (section 4.2).
AdaGrad over the pairs in random order; the result is w + w̃. One step is `vectors/plain.py`, its
compiled twin `vectors/compiled.py`, the counting `vectors/cooccurrence.py`. Shapes: V words, D
d_model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import Field

from inkstone.config import Progress, Section
from inkstone.vectors import compiled, cooccurrence, plain
from inkstone.vectors.cooccurrence import Pairs
from inkstone.vectors.table import Vectors
from inkstone.vectors.trainer import Trainer, matrix
from inkstone.vectors.vocabulary import Vocabulary, Words

KIND = "vectors"
CHUNK = 1 << 15  # pairs that one call of the inner loop trains on


class Config(Section):
    """How the vectors are trained; the defaults are those of the paper.

    Attributes:
        d_model: D.
        window: Tokens on either side.
        x_max: Count from which pairs weigh the same; small corpora want less.
        alpha: Exponent of the weight below that.
        min_count: Rarer words are left out.
        max_words: Keep only so many words, the most frequent.
        epochs: Passes over the pairs; None: 25, or what fits into training.minutes.
        lr: AdaGrad's.
        workers: Threads; None: one a core. Only one is reproducible to the bit.
    """

    d_model: int = Field(default=100, ge=1, le=1 << 14)
    window: int = Field(default=10, ge=1, le=1000)
    x_max: float = Field(default=100.0, gt=0)
    alpha: float = Field(default=0.75, ge=0, le=4)
    min_count: int = Field(default=5, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    lr: float = Field(default=0.05, gt=0, le=10)
    workers: int | None = Field(default=None, ge=1, le=1024)


EPOCHS = 25
PRESETS: dict[str, Config] = {}


def count_pairs(
    config: Config,
    vocabulary: Vocabulary,
    words: Words,
    out: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> Pairs:
    """The matrix X, on disk in the existing folder `out`; the model trains on it alone.

    Raises:
        DataError: No two words stand near one another.
    """
    return cooccurrence.count(
        words, len(vocabulary), config.window, out, seed=seed, progress=progress
    )


class Model(Trainer):
    """Trains word vectors on counted pairs.

    Args:
        config: How.
        vocabulary: The words.
        pairs: What `count_pairs` gave.
        seed: Of the initial vectors.

    Raises:
        ModelError: The matrices do not fit in memory.
    """

    unit = "pairs"
    config: Config

    def __init__(
        self, config: Config, vocabulary: Vocabulary, pairs: Pairs, *, seed: int = 0
    ) -> None:
        self.config, self._pairs = config, pairs
        size, d = len(vocabulary), config.d_model
        random = np.random.default_rng((seed, 0))
        arrays = {
            "w": matrix(size, d + 1),
            "c": matrix(size, d + 1),
            "w_squares": matrix(size, d + 1, fill=1.0),
            "c_squares": matrix(size, d + 1, fill=1.0),
        }
        for name in ("w", "c"):
            random.random(dtype=np.float32, out=arrays[name])
            arrays[name] -= 0.5
            arrays[name] /= d + 1
        super().__init__(
            vocabulary,
            arrays,
            epochs=config.epochs or EPOCHS,
            chunks=-(-len(pairs) // CHUNK),
            units=len(pairs),
            workers=config.workers,
            seed=seed,
        )

    @classmethod
    def fit(cls, config: Config, vocabulary: Vocabulary, words: Words, *, seed: int = 0) -> Vectors:
        """Count and train to the end; for corpora that a moment's work is enough for."""
        with tempfile.TemporaryDirectory() as folder:
            pairs = count_pairs(config, vocabulary, words, Path(folder), seed=seed)
            model = cls(config, vocabulary, pairs, seed=seed)
            model.advance()
            return model.vectors()

    def vectors(self) -> Vectors:
        """The words with the sums of their two vectors (section 4.2)."""
        d = self.config.d_model
        both = self.arrays["w"][:, :d] + self.arrays["c"][:, :d]
        return Vectors(self.vocabulary.words, both, counts=self.vocabulary.counts)

    def lr(self, chunk: int) -> float:
        """AdaGrad's; the same for all chunks."""
        return self.config.lr

    def compile(self) -> None:
        if self.fast:
            self._train(self._pairs.records[:0])

    def _work(self, chunk: int) -> tuple[float, float]:
        start = chunk % self.chunks * CHUNK
        records = self._pairs.records[start : start + CHUNK]
        return self._train(records), float(len(records))

    def _train(self, records: np.ndarray) -> float:
        names = ("w", "c", "w_squares", "c_squares")
        train: Callable[..., float] = plain.train_pairs
        if self.fast:
            train = compiled.train_pairs(self.config.d_model)
        return float(
            train(
                *(np.ascontiguousarray(records[name]) for name in ("i", "j", "x")),
                *(self.arrays[name] for name in names),
                *(np.float32(x) for x in (self.config.x_max, self.config.alpha, self.config.lr)),
            )
        )
