"""Word2Vec: a vector for every word, so that a word's vector predicts the words around it.

Mikolov, Chen, Corrado and Dean, "Efficient Estimation of Word Representations in Vector Space"
(2013a): skip-gram and CBOW; Mikolov, Sutskever, Chen, Corrado and Dean, "Distributed
Representations of Words and Phrases and their Compositionality" (2013b): the objectives

    (1)  1/T Σₜ Σ_{−c ≤ j ≤ c, j ≠ 0} log p(w_{t+j} | w_t)                  skip-gram
    (3)  p(w | w_I) = Π_{n on w's path} σ(±v'_n · v_{w_I})                  hierarchical softmax
    (4)  log σ(v'_{w_O} · v_{w_I}) + Σᵢ₌₁ᵏ log σ(−v'_{wᵢ} · v_{w_I})        negative sampling
    (5)  P(w is dropped) = 1 − sqrt(t / f(w))                               subsampling

As in the released code, skip-gram reads each pair the other way around: every word of a window
predicts the one in its middle, which over a text makes the same pairs. So one set of noise words
serves a whole window (Ji et al. 2016, "Parallelizing Word2Vec in Shared and Distributed Memory",
section 3): few rows are fetched, and threads seldom write to the same ones. CBOW predicts w_t from
the mean of the vectors around it (2013a, section 3.1). One step of gradient descent a window, with
a rate that falls linearly; the step itself is `vectors/plain.py`, its compiled twin
`vectors/compiled.py`. Shapes: V words, D d_model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from inkstone.config import Section
from inkstone.vectors import compiled, plain
from inkstone.vectors.table import Vectors
from inkstone.vectors.trainer import Trainer, matrix
from inkstone.vectors.vocabulary import Vocabulary, Words

KIND = "vectors"
CHUNK = 1 << 13  # tokens that one call of the inner loop trains on; windows end at its ends


class Config(Section):
    """How word vectors are trained; the defaults are those of the released code and of Gensim.

    Attributes:
        d_model: D.
        architecture: Predict the middle word of a window from each of the others, or from their
            mean.
        loss: Negative sampling (eq. 4) or hierarchical softmax (eq. 3).
        negative: k, noise words a window.
        noise_power: Noise words are drawn in proportion to count ^ this.
        window: c; each position draws its own from 1 to this.
        sample: t, the share from which words are thinned out; 0 keeps all.
        min_count: Rarer words are left out.
        max_words: Keep only so many words, the most frequent.
        epochs: Passes over the corpus; None: 5, or what fits into training.minutes.
        lr: Learning rate at the start.
        min_lr: And at the end.
        workers: Threads; None: one a core. Only one is reproducible to the bit.
    """

    d_model: int = Field(default=100, ge=1, le=1 << 14)
    architecture: Literal["skipgram", "cbow"] = "skipgram"
    loss: Literal["negative", "hierarchical"] = "negative"
    negative: int = Field(default=5, ge=1, le=1000)
    noise_power: float = Field(default=0.75, ge=0, le=2)
    window: int = Field(default=5, ge=1, le=1000)
    sample: float = Field(default=1e-3, ge=0, le=1)
    min_count: int = Field(default=5, ge=1)
    max_words: int | None = Field(default=None, ge=1)
    epochs: int | None = Field(default=None, ge=1, le=100_000)
    lr: float = Field(default=0.025, gt=0, le=10)
    min_lr: float = Field(default=1e-4, gt=0, le=10)
    workers: int | None = Field(default=None, ge=1, le=1024)


EPOCHS = 5
PRESETS: dict[str, Config] = {}


class Model(Trainer):
    """Trains word vectors.

    Args:
        config: How.
        vocabulary: The words (`vectors.vocabulary.from_texts` makes one from lists of words).
        words: The corpus as rows of the vocabulary.
        seed: Of the initial vectors and every draw.

    Raises:
        ModelError: The matrices do not fit in memory.
    """

    config: Config

    def __init__(
        self, config: Config, vocabulary: Vocabulary, words: Words, *, seed: int = 0
    ) -> None:
        self.config, self._words = config, words
        self._group_starts, self._groups, rows = self._input_rows(vocabulary)
        hierarchical = config.loss == "hierarchical"
        arrays = {
            "inputs": _initial(rows, config.d_model, seed),
            "output": matrix(len(vocabulary), config.d_model),
        }
        super().__init__(
            vocabulary,
            arrays,
            epochs=config.epochs or EPOCHS,
            chunks=max(1, -(-words.n_tokens // CHUNK)),
            units=words.n_tokens,
            workers=config.workers,
            seed=seed,
        )
        self._keep = vocabulary.keep(config.sample)
        self._noise = vocabulary.noise(config.noise_power)
        tree = vocabulary.huffman() if hierarchical else None
        nothing = np.zeros(1, np.int64)
        self._paths = (
            tree.starts if tree else nothing,
            tree.nodes if tree else nothing.astype(np.int32),
            tree.bits if tree else nothing.astype(np.uint8),
        )
        longest = int(np.diff(tree.starts).max(initial=0)) if tree else config.negative + 1
        self._longest = max(1, longest)
        self._scratch = threading.local()
        self._kind: dict[str, Any] = {
            "cbow": config.architecture == "cbow",
            "hierarchical": hierarchical,
        }

    def fit(self) -> Vectors:
        """Train to the end; for corpora that a moment's work is enough for."""
        self.advance()
        return self.vectors()

    def vectors(self) -> Vectors:
        """The words with their input vectors."""
        return Vectors(
            self.vocabulary.words, self.arrays["inputs"].copy(), counts=self.vocabulary.counts
        )

    def lr(self, chunk: int) -> float:
        """Learning rate of a chunk: linear from lr to min_lr."""
        low = min(self.config.min_lr, self.config.lr)
        return self.config.lr - (self.config.lr - low) * chunk / self.total

    def compile(self) -> None:
        if self.fast:
            self._train(np.zeros(0, np.int32), 1.0, 1)

    def _work(self, chunk: int) -> tuple[float, float]:
        start = chunk % self.chunks * CHUNK
        rows = self._words.rows(start, min(start + CHUNK, self._words.n_tokens))
        loss, looked, _ = self._train(rows, self.lr(chunk), self._random_state(chunk))
        return loss, looked

    def _train(self, rows: npt.NDArray[np.int32], lr: float, state: int) -> tuple[float, int, int]:
        arguments: Any = (
            rows, self.arrays["inputs"], self.arrays["output"], self._keep,
            self._group_starts, self._groups, self._noise, *self._paths,
            self.config.window, self.config.negative,
        )  # fmt: skip
        if not self.fast:
            slow: Callable[..., tuple[float, int, int]] = plain.train_words
            return slow(*arguments, lr, state, **self._kind)
        loop = compiled.train_words(self.config.d_model, **self._kind)
        if not hasattr(self._scratch, "buffers"):
            self._scratch.buffers = (
                np.empty(CHUNK, np.int32),
                np.empty(self._longest, np.uint64),
                np.empty(self._longest, np.float32),
                np.empty((3, 2 * self.config.window + 2, self.config.d_model), np.float32),
            )
        done: tuple[float, int, int] = loop(
            *arguments, np.float32(lr), np.uint64(state), *self._scratch.buffers
        )
        return done

    def _input_rows(
        self, vocabulary: Vocabulary
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32], int]:
        """Which rows of the input matrix make up each word, and how many rows there are."""
        size = len(vocabulary)
        return np.arange(size + 1), np.arange(size, dtype=np.int32), size


def _initial(rows: int, d_model: int, seed: int) -> npt.NDArray[np.float32]:
    """Uniform in ±1/D; the output rows start at 0."""
    made = matrix(rows, d_model)
    np.random.default_rng((seed, 0)).random(dtype=np.float32, out=made)
    made -= 0.5
    made *= 2 / d_model
    return made
