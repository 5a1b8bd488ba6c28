"""`Vectors`: words with their vectors, and what one asks of them."""

from __future__ import annotations

import functools
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from inkstone import registry
from inkstone.errors import ModelError, UsageError
from inkstone.vectors.subwords import NGrams

Floats = npt.NDArray[np.float32]
Method = Literal["add", "mul"]
EPSILON = 1e-6  # of 3CosMul: keeps the division finite


@dataclass(frozen=True)
class Neighbor:
    """A word and how near it is: cosine, or 3CosMul's product."""

    word: str
    score: float


@dataclass(frozen=True, eq=False, repr=False)
class Vectors:
    """A vector for every word.

    Attributes:
        words: V of them, all different, the most frequent first where counts are known.
        matrix: [V, D] fp32.
        counts: [V] int64, or None.
        ngrams: How words outside the vocabulary get a vector (fastText), or None.
        ngram_matrix: [buckets, D] fp32, or None.
        info: Where they come from (contents of inkstone.json).

    Raises:
        ModelError: Sizes do not fit together, a word stands twice, a number is not finite.
    """

    words: tuple[str, ...]
    matrix: Floats
    counts: npt.NDArray[np.int64] | None = None
    ngrams: NGrams | None = None
    ngram_matrix: Floats | None = None
    info: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or len(self.matrix) != len(self.words):
            raise ModelError(
                f"{len(self.words)} words do not fit a matrix of shape {self.matrix.shape}"
            )
        if len(self.row) != len(self.words):
            twice = next(w for n, w in enumerate(self.words) if self.row[w] != n)
            raise ModelError(f"the word {twice[:60]!r} stands twice")
        for part in (self.matrix, self.ngram_matrix):
            if part is not None and not np.isfinite(part).all():
                raise ModelError("a vector holds a number that is not finite")

    @functools.cached_property
    def row(self) -> dict[str, int]:
        """Where each word stands."""
        return {word: number for number, word in enumerate(self.words)}

    @functools.cached_property
    def unit(self) -> Floats:
        """[V, D] the vectors at length 1 (a zero vector stays zero)."""
        length = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        unit: Floats = (self.matrix / np.maximum(length, 1e-30)).astype(np.float32)
        return unit

    @property
    def d_model(self) -> int:
        """D, the length of a vector."""
        return int(self.matrix.shape[1])

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        """Whether the word is in the vocabulary (with n-grams, others have vectors, too)."""
        return word in self.row

    def __getitem__(self, word: str) -> Floats:
        """[D] the word's vector; of a word outside the vocabulary, the mean of its n-grams.

        Raises:
            UsageError: The word has no vector; names the nearest that have.
        """
        if (row := self.row.get(word)) is not None:
            return self.matrix[row]
        if self.ngrams is not None and self.ngram_matrix is not None:
            rows = self.ngrams.rows(word)
            if len(rows):
                mean: Floats = self.ngram_matrix[rows].mean(axis=0, dtype=np.float32)
                return mean
        near = registry.did_you_mean(word, self.words[:50_000]).partition("known:")[0].strip()
        raise UsageError(
            f"the word {word[:60]!r} has no vector",
            fix=near or "it is not in the vocabulary; look at `words`, or train fastText",
        )

    def similarity(self, a: str, b: str) -> float:
        """Cosine of two words.

        Raises:
            UsageError: A word has no vector.
        """
        x, y = self._unit_of(a), self._unit_of(b)
        return float(x @ y)

    def most_similar(
        self,
        positive: str | Sequence[str],
        negative: str | Sequence[str] = (),
        *,
        top: int = 10,
        method: Method = "add",
        restrict: int | None = None,
    ) -> list[Neighbor]:
        """The words nearest to a word, or to a sum and difference of words.

        Args:
            positive: A word, or several whose vectors (at length 1) are added.
            negative: Words whose vectors are subtracted.
            top: How many.
            method: "add" ranks by the cosine with the sum (3CosAdd, Mikolov et al. 2013c); "mul" by
                the product of the cosines with the added, moved to [0, 1], over that with the
                subtracted (3CosMul, Levy and Goldberg 2014, eq. 4).
            restrict: Answer only with so many of the first (most frequent) words.

        Raises:
            UsageError: A word has no vector, or nothing is given.
        """
        added = [positive] if isinstance(positive, str) else list(positive)
        taken = [negative] if isinstance(negative, str) else list(negative)
        if not added and not taken:
            raise UsageError("no word is given")
        if top < 1:
            raise UsageError(f"cannot give {top} words", fix="ask for at least one")
        up = np.array([self._unit_of(w) for w in added]).reshape(-1, self.d_model)
        down = np.array([self._unit_of(w) for w in taken]).reshape(-1, self.d_model)
        scores = self.scores(up[None], down[None], method=method, restrict=restrict)[0]
        for word in (*added, *taken):
            if self.row.get(word, len(scores)) < len(scores):
                scores[self.row[word]] = -np.inf
        best = np.argsort(-scores, kind="stable")[:top]
        return [Neighbor(self.words[i], float(scores[i])) for i in best if scores[i] > -np.inf]

    def analogy(
        self, a: str, b: str, c: str, *, top: int = 10, method: Method = "add"
    ) -> list[Neighbor]:
        """What is to c as b is to a: "man", "king", "woman" asks for "queen"."""
        return self.most_similar([b, c], [a], top=top, method=method)

    def scores(
        self, positive: Floats, negative: Floats, *, method: Method, restrict: int | None = None
    ) -> Floats:
        """How near every word is, for several questions at once.

        Args:
            positive: [Q, P, D] unit vectors.
            negative: [Q, N, D] unit vectors.
            method: As in `most_similar`.
            restrict: As there.

        Returns:
            [Q, V], or fewer words where restricted.
        """
        unit = self.unit[:restrict]
        if method == "mul":
            near = (1 + np.einsum("qpd,vd->qpv", positive, unit, optimize=True)) / 2
            far = (1 + np.einsum("qnd,vd->qnv", negative, unit, optimize=True)) / 2
            product: Floats = near.prod(axis=1) / (far.prod(axis=1) + EPSILON)
            return product
        if method != "add":
            raise UsageError(f"unknown method {method!r}", fix='choose "add" or "mul"')
        query = positive.sum(axis=1) - negative.sum(axis=1)
        query /= np.maximum(np.linalg.norm(query, axis=1, keepdims=True), 1e-30)
        cosines: Floats = query @ unit.T
        return cosines

    def _unit_of(self, word: str) -> Floats:
        if (row := self.row.get(word)) is not None:
            found: Floats = self.unit[row]
            return found
        vector = self[word]
        return vector / np.float32(max(float(np.linalg.norm(vector)), 1e-30))

    def __repr__(self) -> str:
        return f"<Vectors of {len(self):,} words, {self.d_model} numbers each>"

    def _repr_html_(self) -> str:
        """A small table for notebooks."""
        shown = ", ".join(html.escape(w) for w in self.words[:10])
        return (
            f"<table><tr><th>words</th><td>{len(self):,}: {shown} …</td></tr>"
            f"<tr><th>d_model</th><td>{self.d_model}</td></tr></table>"
        )
