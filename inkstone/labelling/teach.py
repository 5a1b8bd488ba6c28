"""Self-training: a model labels what it is sure of, learns from that too, and looks again.

Yarowsky 1995, "Unsupervised Word Sense Disambiguation Rivaling Supervised Methods"; Lee 2013,
"Pseudo-Label". In round r of R each class may take a share of the unlabelled rows that grows with
the rounds, in proportion to how often people gave it (its balance stays as it was), and only rows
whose probability is at least that of the last one it may take: so each class has a threshold of its
own, and a class that the model finds easy cannot crowd out the others (Zhang et al. 2021,
"FlexMatch", section 3). All rows are judged anew in each round; a label that was taken in one and
is doubted in the next is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from inkstone.labelling.guess import Bag
from inkstone.labelling.votes import ABSTAIN, Floats, Ints
from inkstone.models.bag_of_words import Model


@dataclass(frozen=True)
class Taught:
    """What self-training comes to.

    Attributes:
        model: Fitted to people's labels and its own.
        labels: [N] the class that each row was learned with, or ABSTAIN.
        p: [N, C] of the model that chose them.
        thresholds: [C] lowest probability of a label taken in the last round; NaN for none.
        taken: Labels taken in each round.
    """

    model: Model
    labels: Ints
    p: Floats
    thresholds: Floats
    taken: tuple[int, ...]


def self_train(
    bag: Bag,
    known: Ints,
    labels: Sequence[str],
    allowed: Ints,
    *,
    rounds: int = 5,
    share: float = 0.5,
    confidence: float = 0.0,
) -> Taught:
    """Fit, label, fit again.

    Args:
        bag: All rows.
        known: [N] place in `labels` of what is known, else ABSTAIN; at least two classes.
        labels: The classes.
        allowed: Rows without a label that may get one.
        rounds: R, at least 1.
        share: Of the allowed rows that have a label after the last round.
        confidence: No label below this probability, whatever the class.
    """
    given = np.flatnonzero(known != ABSTAIN)
    balance = np.bincount(known[given], minlength=len(labels)) / len(given)
    now, taken, thresholds = known.copy(), [], np.full(len(labels), np.nan)
    for number in range(1, rounds + 1):
        p = bag.probabilities(_fit(bag, now, labels), labels)
        now = known.copy()
        size = share * len(allowed) * number / rounds
        chosen, thresholds = _surest(p[allowed], np.round(balance * size), confidence)
        now[allowed] = chosen
        taken.append(int((chosen != ABSTAIN).sum()))
    return Taught(_fit(bag, now, labels), now, p, thresholds, tuple(taken))


def _surest(p: Floats, quota: Floats, confidence: float) -> tuple[Ints, Floats]:
    """[M] a class, or ABSTAIN, for the surest rows of each class; and the classes' thresholds."""
    best, sure = p.argmax(1), p.max(1)
    chosen = np.full(len(p), ABSTAIN)
    thresholds = np.full(p.shape[1], np.nan)
    for c in range(p.shape[1]):
        mine = np.flatnonzero((best == c) & (sure >= confidence))
        mine = mine[np.argsort(-sure[mine], kind="stable")][: int(quota[c])]
        chosen[mine] = c
        if len(mine):
            thresholds[c] = sure[mine[-1]]
    return chosen, thresholds


def _fit(bag: Bag, known: Ints, labels: Sequence[str]) -> Model:
    rows = np.flatnonzero(known != ABSTAIN)
    return bag.fit(rows, [labels[c] for c in known[rows]])
