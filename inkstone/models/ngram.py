"""Interpolated modified Kneser-Ney: the n-gram model that a neural one has to beat.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling" (1998,
TR-10-98, section 4.1.6), in the form of Heafield, Pouzyrevsky, Clark and Koehn, "Scalable
Modified Kneser-Ney Language Model Estimation" (2013, section 3). With c a count in the corpus:

    a(w₁ⁿ)        = c(w₁ⁿ)                     if n is the highest order or w₁ starts a document
                  = |{v : c(v w₁ⁿ) > 0}|       otherwise (Heafield, section 3.2)
    D(k)          = k − (k+1) t₁ t₍ₖ₊₁₎ / ((t₁ + 2 t₂) tₖ),  k = 1, 2, 3+   (Chen, equation 26)
    u(wₙ | w₁ⁿ⁻¹) = (a(w₁ⁿ) − D(a(w₁ⁿ))) / Σₓ a(w₁ⁿ⁻¹ x)
    b(w₁ⁿ⁻¹)      = Σₖ D(k) |{x : a(w₁ⁿ⁻¹ x) = k}| / Σₓ a(w₁ⁿ⁻¹ x)
    p(wₙ | w₁ⁿ⁻¹) = u(wₙ | w₁ⁿ⁻¹) + b(w₁ⁿ⁻¹) p(wₙ | w₂ⁿ⁻¹)

where tₖ counts the n-grams with a = k, and the recursion ends in 1/V. Everything is sorted numpy
arrays: an n-gram is the rank of its first n−1 tokens and its last token, packed in one integer.
Shapes: T tokens, V vocab.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import Field, ValidationError

from inkstone.config import Section
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import atomic_folder, write_json
from inkstone.models import _arrays

KIND = "ngram"
MAX_COUNT = 1 << 53  # exact as a float

Ids = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # KenLM's, where equation 26 is undefined (tiny corpora)


class Config(Section):
    """Order and vocabulary of the model.

    `boundary_id` is the token that ends every document. Contexts reach back to it and not beyond:
    the start of a document is predicted from the boundary alone.
    """

    vocab_size: int = Field(ge=1, le=1 << 22)
    order: int = Field(default=5, ge=1, le=16)
    boundary_id: int | None = Field(default=None, ge=0)


@dataclass(frozen=True, slots=True)
class _Level:
    """All n-grams of one order, and what their contexts (the first n−1 tokens) give away.

    Attributes:
        keys: [U] sorted; rank of the context · V + last token.
        counts: [U] adjusted counts a.
        totals: [contexts] Σₓ a(context x); 0 where nothing ever followed.
        backoff: [contexts] b(context); 1 where nothing ever followed.
        discounts: [4] D(a) for a = 0, 1, 2, 3 and more.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    totals: npt.NDArray[np.int64]
    backoff: Floats
    discounts: Floats

    def seen(self, which: npt.NDArray[np.int64]) -> Floats:
        """u of the n-grams with these ranks, without the division by the context's total."""
        counts = self.counts[which]
        return counts - self.discounts[np.minimum(counts, 3)]


class Model:
    """Counts once (`fit`), then scores whole corpora (`log_probs`) or one context (`next_probs`).

    Args:
        config: Order, vocabulary and document boundary.
    """

    def __init__(self, config: Config) -> None:
        if config.boundary_id is not None and config.boundary_id >= config.vocab_size:
            raise ModelError(
                f"boundary_id {config.boundary_id} is outside the vocabulary of {config.vocab_size}"
            )
        self.config = config
        self._levels: list[_Level] = []

    def fit(self, ids: Ids) -> Model:
        """Count every n-gram up to the order and estimate discounts.

        Args:
            ids: [T] the training corpus as one stream, each document followed by the boundary.

        Returns:
            The model itself.

        Raises:
            ModelError: No tokens, or ids outside the vocabulary.
        """
        x = self._checked(ids)
        if not len(x):
            raise ModelError("an n-gram model needs at least one token to count")
        if self.config.boundary_id is not None:
            x = np.concatenate(([self.config.boundary_id], x))
        gram, self._levels = _unigrams(x, self.config), []
        for n in range(2, self.config.order + 1):
            longer = _extend(x, gram, n, self.config)
            self._levels.append(_level(gram, longer, n - 1, self.config))
            gram = longer
        self._levels.append(_level(gram, None, self.config.order, self.config))
        return self

    def log_probs(self, ids: Ids) -> Floats:
        """ln p of every token given those before it: [T] → [T] nats.

        The first token is predicted from the boundary (or from nothing, without a boundary).

        Raises:
            ModelError: Not fitted, or ids outside the vocabulary.
        """
        levels, x = self._fitted(), self._checked(ids)
        start = 0
        if self.config.boundary_id is not None:
            x, start = np.concatenate(([self.config.boundary_id], x)), 1
        vocab_size = self.config.vocab_size
        p = np.full(len(x), 1.0 / vocab_size)
        # context[i]: rank of the n−1 tokens that begin at i, −1 where they were never seen.
        context = np.zeros(len(x) + 1, dtype=np.int64)
        for n, level in enumerate(levels, start=1):
            head = context[: max(0, len(x) - n + 1)]
            gram, known = _find(level.keys, head, x[n - 1 :], vocab_size)
            target = p[n - 1 :]
            rows = np.flatnonzero(head >= 0)
            rows = rows[level.totals[head[rows]] > 0]
            target[rows] *= level.backoff[head[rows]]
            rows = np.flatnonzero(known)
            target[rows] += level.seen(gram[rows]) / level.totals[head[rows]]
            context = gram
        return np.log(p[start:])

    def next_probs(self, context: Ids) -> Floats:
        """p of every token after `context`: [T] → [V], which sums to 1.

        The context is read as the start of a document when it is shorter than the order.

        Raises:
            ModelError: Not fitted, or ids outside the vocabulary.
        """
        levels, x = self._fitted(), self._checked(context)
        if self.config.boundary_id is not None:
            x = np.concatenate(([self.config.boundary_id], x))
        vocab_size = self.config.vocab_size
        p = np.full(vocab_size, 1.0 / vocab_size)
        for n, level in enumerate(levels, start=1):
            rank = self._rank(x[len(x) - n + 1 :]) if n - 1 <= len(x) else -1
            if rank < 0 or not level.totals[rank]:
                continue
            first, last = np.searchsorted(level.keys, (rank * vocab_size, (rank + 1) * vocab_size))
            p *= level.backoff[rank]
            children = np.arange(first, last)
            p[level.keys[children] - rank * vocab_size] += level.seen(children) / level.totals[rank]
        return p

    def sample(
        self, context: Ids, count: int, *, stop_id: int | None = None, seed: int = 0
    ) -> list[int]:
        """Draw up to `count` tokens after a context, each from `next_probs`.

        Args:
            context: [T], the start of a document.
            count: Tokens at most.
            stop_id: The token that ends the draw; it is not returned.
            seed: Of the random numbers.

        Raises:
            ModelError: Not fitted, or ids outside the vocabulary.
        """
        rng = np.random.default_rng(seed)
        ids = np.asarray(context, np.int64).tolist()
        begin = len(ids)
        for _ in range(count):
            p = self.next_probs(np.array(ids, np.int64))
            drawn = int(np.searchsorted(p.cumsum(), rng.random() * p.sum(), side="right"))
            if drawn == stop_id:
                break
            ids.append(min(drawn, len(p) - 1))
        return ids[begin:]

    def save(self, folder: Path | str) -> None:
        """Write a folder of config.json and model.safetensors, whole or not at all.

        Raises:
            ModelError: Not fitted.
            CheckpointError: It cannot be written.
        """
        with atomic_folder(folder) as out:
            self.write(out)

    def write(self, folder: Path) -> None:
        """The files of `save`, into a folder that somebody else makes whole."""
        arrays: dict[str, npt.NDArray[np.int64]] = {}
        for n, level in enumerate(self._fitted(), start=1):
            arrays |= {f"keys.{n}": level.keys, f"counts.{n}": level.counts}
        settings = self.config.model_dump(mode="json")
        config = {"model_type": "ngram", "format": 1, "settings": settings}
        write_json(folder / _arrays.CONFIG, config)
        _arrays.write_arrays(folder / _arrays.ARRAYS, arrays)

    @staticmethod
    def load(folder: Path | str) -> Model:
        """Read what `save` wrote, as if it were hostile.

        Raises:
            CheckpointError: Missing, damaged or inconsistent; the message names the file.
        """
        folder = Path(folder)
        settings = _arrays.read_folder_config(folder, "ngram").get("settings")
        try:
            model = Model(Config.model_validate(settings))
        except (ValidationError, ModelError) as error:
            raise CheckpointError(f"{folder / _arrays.CONFIG}: settings: {error}") from error
        orders = range(1, model.config.order + 1)
        names = [f"{what}.{n}" for n in orders for what in ("keys", "counts")]
        arrays = _arrays.read_arrays(folder / _arrays.ARRAYS, dict.fromkeys(names, "int64"))
        contexts = 1
        for n in orders:
            keys, counts = arrays[f"keys.{n}"], arrays[f"counts.{n}"]
            if problem := _problem(keys, counts, contexts, model.config.vocab_size):
                raise CheckpointError(f"{folder / _arrays.ARRAYS}: {n}-grams: {problem}")
            if n == 1 and len(keys) != model.config.vocab_size:
                raise CheckpointError(f"{folder / _arrays.ARRAYS}: not one count a token")
            model._levels.append(_smoothed(keys, counts, contexts, model.config.vocab_size))
            contexts = len(keys)
        return model

    @property
    def n_grams(self) -> tuple[int, ...]:
        """Distinct n-grams that were counted, by order."""
        return tuple(int(np.count_nonzero(level.counts)) for level in self._fitted())

    def _rank(self, gram: Ids) -> int:
        rank = np.zeros(1, dtype=np.int64)
        for level, token in zip(self._levels, gram, strict=False):
            rank, _ = _find(level.keys, rank, np.array([token]), self.config.vocab_size)
        return int(rank[0])

    def _fitted(self) -> list[_Level]:
        if not self._levels:
            raise ModelError("this n-gram model has counted nothing yet", fix="call fit() first")
        return self._levels

    def _checked(self, ids: Ids) -> npt.NDArray[np.int64]:
        x = np.asarray(ids).astype(np.int64, copy=False)
        if x.ndim != 1:
            raise ModelError(f"token ids must be one flat array, not of shape {x.shape}")
        if len(x) and (x.min() < 0 or x.max() >= self.config.vocab_size):
            raise ModelError(
                f"token ids run from {x.min()} to {x.max()}, "
                f"but the vocabulary is 0 to {self.config.vocab_size - 1}"
            )
        return x


@dataclass(frozen=True, slots=True)
class _Grams:
    """The n-grams of one order as they stand in the corpus.

    Attributes:
        starts: [occurrences] where each begins.
        ranks: [occurrences] the rank of each among the distinct ones.
        keys: [U] sorted; rank of the first n−1 tokens · V + last token.
        counts: [U] occurrences.
        suffixes: [U] rank of the last n−1 tokens among the n-grams one shorter.
        contexts: Distinct n-grams one shorter.
        from_boundary: [U] whether it begins with the boundary.
    """

    starts: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    suffixes: npt.NDArray[np.int64]
    contexts: int
    from_boundary: npt.NDArray[np.bool_]


def _unigrams(x: npt.NDArray[np.int64], config: Config) -> _Grams:
    """Order 1, where the rank of a token is the token itself."""
    v = config.vocab_size
    return _Grams(
        starts=np.arange(len(x)),
        ranks=x,
        keys=np.arange(v),
        counts=np.bincount(x, minlength=v),
        suffixes=np.zeros(v, dtype=np.int64),
        contexts=1,
        from_boundary=np.zeros(v, dtype=np.bool_),  # as a prediction, it ends a document
    )


def _extend(x: npt.NDArray[np.int64], shorter: _Grams, n: int, config: Config) -> _Grams:
    """The n-grams of order n: those one shorter, each with the token that follows it."""
    boundary = config.boundary_id
    inside = shorter.starts + n - 1 < len(x)
    if boundary is not None and n > 2:  # the token that becomes an inner one ends no document
        inside[inside] = x[shorter.starts[inside] + n - 2] != boundary
    starts = shorter.starts[inside]
    key = shorter.ranks[inside] * config.vocab_size + x[starts + n - 1]

    order = np.argsort(key)
    key = key[order]
    new = np.empty(len(key), dtype=np.bool_)
    new[:1] = True
    np.not_equal(key[1:], key[:-1], out=new[1:])
    firsts = np.flatnonzero(new)
    ranks = np.empty(len(key), dtype=np.int64)
    ranks[order] = np.cumsum(new) - 1

    example = starts[order[firsts]]  # one place of each distinct n-gram
    rank_at = np.full(len(x), -1, dtype=np.int64)
    rank_at[shorter.starts] = shorter.ranks
    return _Grams(
        starts=starts,
        ranks=ranks,
        keys=key[firsts],
        counts=np.diff(firsts, append=len(key)),
        suffixes=rank_at[example + 1],
        contexts=len(shorter.keys),
        from_boundary=x[example] == (-1 if boundary is None else boundary),
    )


def _level(gram: _Grams, longer: _Grams | None, n: int, config: Config) -> _Level:
    """Adjusted counts, discounts and back-off weights of one order."""
    counts = gram.counts
    if longer is not None:
        distinct = np.bincount(longer.suffixes, minlength=len(gram.keys))
        if config.boundary_id is None and len(gram.ranks):
            distinct[gram.ranks[0]] += 1  # the start of the stream precedes, too
        counts = np.where(gram.from_boundary, counts, distinct)
    elif n == 1 and config.boundary_id is not None:
        counts = counts.copy()
        counts[config.boundary_id] -= 1  # the one put before the corpus is never predicted
    return _smoothed(gram.keys, counts, gram.contexts, config.vocab_size)


def _smoothed(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], n_contexts: int, vocab_size: int
) -> _Level:
    """Discounts and back-off weights from adjusted counts."""
    discounts = _discounts(counts)
    contexts = keys // vocab_size
    totals = np.bincount(contexts, weights=counts, minlength=n_contexts).astype(np.int64)
    freed = np.bincount(contexts, weights=discounts[np.minimum(counts, 3)], minlength=n_contexts)
    backoff = np.divide(freed, totals, out=np.ones(n_contexts), where=totals > 0)
    return _Level(keys, counts, totals, backoff, discounts)


def _problem(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], n_contexts: int, vocab_size: int
) -> str:
    """What is wrong with a level that was read; "" if nothing is."""
    if keys.ndim != 1 or keys.shape != counts.shape:
        return "not one count a key"
    if len(keys) and not 0 <= keys[0] <= keys[-1] < n_contexts * vocab_size:
        return "a key is out of range"
    if not (keys[1:] > keys[:-1]).all():
        return "the keys are not in order"
    if ((counts < 0) | (counts > MAX_COUNT // max(1, len(counts)))).any():
        return "a count is out of range"
    return ""


def _discounts(counts: npt.NDArray[np.int64]) -> Floats:
    """D(0) … D(3+) by equation 26, or the fall-back where it gives nothing usable."""
    t = [0.0, *(float(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))]
    if all(t[1:4]):
        y = t[1] / (t[1] + 2 * t[2])
        d = [k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3)]
        if all(0 < value <= k for k, value in enumerate(d, start=1)):
            return np.array([0.0, *d])
    return np.array([0.0, *FALLBACK_DISCOUNTS])


def _find(
    keys: npt.NDArray[np.int64], context: npt.NDArray[np.int64], token: Ids, vocab_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Ranks of (context, token) among `keys`, −1 and False where it is not there."""
    if not len(keys):
        return np.full(len(context), -1, dtype=np.int64), np.zeros(len(context), dtype=np.bool_)
    wanted = context * vocab_size + token
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    known = (context >= 0) & (keys[place] == wanted)
    return np.where(known, place, -1), known
