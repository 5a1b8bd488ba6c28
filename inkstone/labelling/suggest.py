"""Which examples to label next: those the model is least sure of, and not two of a kind.

Uncertainty of an example with class probabilities p (Settles 2009, "Active Learning Literature
Survey", section 3.1), higher where a label would tell more:

    margin    1 − (p₁ − p₂), of the two likeliest classes
    entropy   −Σ p ln p / ln C

Asked for one after the other, the most uncertain are often the same text in other words. So a batch
is spread: of OVERSIZE times as many uncertain ones, each time the one that is farthest, by the
cosine of its tf-idf row, from all that are labelled or chosen (the greedy k-center of Sener and
Savarese 2018, "Active Learning for Convolutional Neural Networks: A Core-Set Approach",
algorithm 1). Before there is a model all are equally uncertain, and the candidates are drawn at
random. The same seed and labels give the same batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from inkstone.labelling.guess import Bag
from inkstone.labelling.votes import Floats, Ints

Strategy = Literal["margin", "entropy"]
OVERSIZE = 5


def uncertainty(p: Floats, strategy: Strategy = "margin") -> Floats:
    """[N, C] probabilities → [N] from 0 (sure) to 1."""
    if strategy == "entropy":
        terms = p * np.log(np.maximum(p, np.finfo(np.float64).tiny))
        found: Floats = -terms.sum(1) / np.log(p.shape[1])
        return found
    two = np.sort(p, axis=1)[:, -2:]
    margin: Floats = 1 - (two[:, 1] - two[:, 0])
    return margin


def suggest(
    bag: Bag,
    n: int,
    candidates: Ints,
    labelled: Ints,
    p: Floats | None,
    *,
    seed: int = 0,
    strategy: Strategy = "margin",
) -> Ints:
    """The rows to label next, most useful first.

    Args:
        bag: All rows.
        n: How many at most.
        candidates: Rows that have no label.
        labelled: Rows that have one.
        p: [N, C] probabilities of all rows; None before there is a model.
        seed: Of the draw among equals.
        strategy: What uncertainty is.
    """
    n = min(n, len(candidates))
    if not n:
        return np.empty(0, np.int64)
    mixed = np.random.default_rng(seed).permutation(candidates)
    if p is not None:
        mixed = mixed[np.argsort(-uncertainty(p[mixed], strategy), kind="stable")]
    return spread(bag, mixed[: OVERSIZE * n], labelled, n)


def spread(bag: Bag, candidates: Ints, centers: Ints, n: int) -> Ints:
    """Greedy k-center: `n` of the candidates, each the farthest from all centres before it."""
    rows = bag.directions[candidates]
    nearest = np.full(len(candidates), -1.0, np.float32)  # highest cosine to a centre
    if len(centers):
        nearest = (rows @ bag.directions[centers].T).max(axis=1).toarray().ravel()
    free = np.ones(len(candidates), np.bool_)
    chosen = []
    for _ in range(n):
        best = int(np.flatnonzero(free)[nearest[free].argmin()])  # the first of equals
        chosen.append(best)
        free[best] = False
        cosine = (rows @ rows[best].T).toarray().ravel()
        np.maximum(nearest, cosine, out=nearest)
    return candidates[chosen]
