"""From the votes of many weak rules to one label: which rules are to be believed.

A rule votes for a class or abstains. `majority` counts votes. `LabelModel` weighs them by how often
each rule says what where, which it learns without any label from where the rules agree. With Y the
class of an example and λ_j what rule j says of it, a class or nothing,

    p(Y = y | λ) ∝ π_y · Π_j θ_j[y, λ_j]                                              (E step)
    θ_j[y, v] = (Σ_i p(Y_i = y) [λ_ij = v] + A f_j[v]) / (Σ_i p(Y_i = y) + A)          (M step)
    π_y = (Σ_i p(Y_i = y) + 1) / (N + C)

This is the expectation maximisation of Dawid and Skene 1979, "Maximum Likelihood Estimation of
Observer Error-Rates Using the EM Algorithm" (equations 2.3 to 2.5), begun at the majority, on the
rows that some rule votes on; the agreement of Ratner et al. 2017, "Snorkel", section 2.2. That a
rule says nothing is an answer too: most rules know one class only, and models in which silence
tells nothing (one accuracy a rule) can explain whole classes away. f_j is how often rule j says
what at all: A rows more, on which it knows nothing. Rows with a known label take part with it.

Shapes: N rows, R rules, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ABSTAIN = -1
PRIOR_ROWS = 4.0  # A
MAX_STEPS = 200
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class RuleFacts:
    """What one rule did.

    Attributes:
        coverage: Share of the rows that it votes on.
        overlap: Share of the rows that it votes on and another rule too.
        conflict: Share of the rows that it votes on and another rule votes otherwise.
    """

    coverage: float
    overlap: float
    conflict: float


def facts(votes: Ints) -> list[RuleFacts]:
    """Coverage, overlap and conflict of each rule (Ratner et al. 2017, section 2.2).

    Args:
        votes: [N, R] classes, or ABSTAIN.
    """
    fires = votes != ABSTAIN
    others = fires.sum(1, keepdims=True) - fires > 0
    high = votes.max(1, keepdims=True, initial=ABSTAIN)
    # where a vote is not the highest, that voter and the one of the highest are in conflict, and
    # each further voter is in conflict with one of the two
    differ = (fires & (votes != high)).any(1, keepdims=True)
    rows = max(1, len(votes))
    parts = zip(fires.T, (fires & others).T, (fires & differ).T, strict=True)
    return [RuleFacts(*(float(x.sum() / rows) for x in part)) for part in parts]


def majority(votes: Ints, n_classes: int) -> Floats:
    """Share of the votes by class: [N, C]; all equal where no rule votes."""
    counts = np.stack([(votes == c).sum(1) for c in range(n_classes)], 1)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / n_classes)


@dataclass(frozen=True, slots=True)
class LabelModel:
    """What each rule says of which class, and how often it is right.

    Attributes:
        answers: [R, C, C + 1] θ: of each class, the chance of silence and of each vote.
        shares: [C] of the classes among rows that some rule votes on, π.
        accuracies: [R] expected share of a rule's votes that are right; NaN if it never votes.
        steps: Of expectation maximisation.
    """

    answers: Floats
    shares: Floats
    accuracies: Floats
    steps: int

    @staticmethod
    def fit(votes: Ints, n_classes: int, known: Ints | None = None) -> LabelModel:
        """Learn from the votes.

        Args:
            votes: [N, R] classes, or ABSTAIN.
            n_classes: C, at least 2.
            known: [N] the right class where somebody said it, else ABSTAIN.
        """
        known = np.full(len(votes), ABSTAIN) if known is None else known
        rows = np.concatenate((votes, known[:, None]), 1)[(votes != ABSTAIN).any(1)]
        rows, often = np.unique(rows, axis=0, return_counts=True)  # few differ
        votes, known = rows[:, :-1], rows[:, -1]
        told = np.flatnonzero(known != ABSTAIN)
        overall = (
            np.stack([_shares(v, often, n_classes) for v in votes.T])
            if votes.size
            else (np.zeros((votes.shape[1], n_classes + 1)))
        )
        p, steps = majority(votes, n_classes), 0
        for _ in range(MAX_STEPS):
            steps += 1
            p[told] = np.eye(n_classes)[known[told]]
            weights = p * often[:, None]
            shares = (weights.sum(0) + 1) / (often.sum() + n_classes)
            answers = PRIOR_ROWS * overall[:, None, :].repeat(n_classes, 1)
            for j, c in np.ndindex(*answers.shape[:2]):
                answers[j, c] += np.bincount(votes[:, j] + 1, weights[:, c], n_classes + 1)
            answers /= np.maximum(answers.sum(2, keepdims=True), np.finfo(np.float64).tiny)
            before, p = p, _posterior(votes, answers, shares)
            if np.abs(p - before).max(initial=0.0) < TOLERANCE:
                break
        p[told] = np.eye(n_classes)[known[told]]
        fires = (votes != ABSTAIN) * often[:, None]
        right = (np.take_along_axis(p, np.maximum(votes, 0), 1) * fires).sum(0)
        total = fires.sum(0)
        accuracies = np.where(total > 0, right / np.maximum(total, 1), np.nan)
        return LabelModel(answers, shares, accuracies, steps)

    def probabilities(self, votes: Ints) -> Floats:
        """p(Y | votes): [N, C]; the shares of the classes where no rule votes."""
        p = _posterior(votes, self.answers, self.shares)
        p[(votes == ABSTAIN).all(1)] = self.shares
        return p


def _posterior(votes: Ints, answers: Floats, shares: Floats) -> Floats:
    """The E step: [N, C]."""
    logs = np.log(np.maximum(answers, np.finfo(np.float64).tiny))
    scores = np.log(shares) + np.zeros((len(votes), 1))
    for j, column in enumerate(votes.T):
        scores += logs[j][:, column + 1].T
    p: Floats = np.exp(scores - scores.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _shares(column: Ints, often: Ints, n_classes: int) -> Floats:
    """[C + 1] how often a rule is silent and votes for each class."""
    counts = np.bincount(column + 1, often, n_classes + 1)
    found: Floats = counts / counts.sum()
    return found
