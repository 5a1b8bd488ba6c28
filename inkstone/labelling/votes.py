"""From the votes of many weak rules to one label: which rules are to be believed.

A rule votes for a class or abstains. `majority` counts votes. `LabelModel` weighs them by how often
each rule is right, which it learns without any label from where the rules agree: with Y the true
class of an example and λ_j the vote of rule j, right with probability α_j and else equally likely
to be any of the C − 1 other classes,

    p(Y = y | λ) ∝ π_y · Π_{j votes} (α_j if λ_j = y else (1 − α_j) / (C − 1))          (E step)
    α_j = (A + Σ_i p(Y_i = λ_ij | λ_i)) / (A + B + n_j)                                 (M step)

n_j being the votes of rule j. This is the independent model of Ratner et al. 2016, "Data
Programming" (equation 1), with what Ratner et al. 2017 ("Snorkel") call the accuracies, fitted by
the expectation maximisation of Dawid and Skene 1979; A and B are a prior that a rule is right more
often than not, without which a model and its mirror image fit alike. Rows whose label is known take
part with that label.

Shapes: N rows, R rules, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ABSTAIN = -1
PRIOR = (7.0, 3.0)  # as if each rule had been right on 7 examples and wrong on 3
MAX_STEPS = 200
TOLERANCE = 1e-6
SURE = 1 - 1e-6  # no rule is believed without end


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
    counts = _tally(votes, np.ones(votes.shape[1]), n_classes)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.maximum(total, 1), 1 / n_classes)


@dataclass(frozen=True, slots=True)
class LabelModel:
    """How often each rule is right.

    Attributes:
        accuracies: [R].
        shares: [C] of the classes, π.
        steps: Of expectation maximisation.
    """

    accuracies: Floats
    shares: Floats
    steps: int

    @staticmethod
    def fit(votes: Ints, n_classes: int, known: Ints | None = None) -> LabelModel:
        """Learn the accuracies.

        Args:
            votes: [N, R] classes, or ABSTAIN.
            n_classes: C, at least 2.
            known: [N] the right class where somebody said it, else ABSTAIN. Shares of the classes
                are theirs; without any, all classes count alike.
        """
        known = np.full(len(votes), ABSTAIN) if known is None else known
        said = known[known != ABSTAIN]
        counts = np.bincount(said, minlength=n_classes) + (1.0 if len(said) else 0.0)
        shares = counts / counts.sum() if len(said) else np.full(n_classes, 1 / n_classes)
        fires = votes != ABSTAIN
        a, b = PRIOR
        accuracies = np.full(votes.shape[1], a / (a + b))
        rows = np.arange(len(votes))[:, None]
        step = 0
        for step in range(1, MAX_STEPS + 1):
            p = LabelModel(accuracies, shares, step).probabilities(votes)
            p[known != ABSTAIN] = np.eye(n_classes)[said]
            right = (p[rows, votes] * fires).sum(0)
            before, accuracies = accuracies, (a + right) / (a + b + fires.sum(0))
            if np.abs(accuracies - before).max(initial=0.0) < TOLERANCE:
                break
        return LabelModel(accuracies, shares, step)

    def probabilities(self, votes: Ints) -> Floats:
        """p(Y | votes): [N, C]; the shares of the classes where no rule votes."""
        n_classes = len(self.shares)
        alpha = np.minimum(self.accuracies, SURE)
        weights = np.log(alpha * (n_classes - 1) / (1 - alpha))
        scores = np.log(self.shares) + _tally(votes, weights, n_classes)
        p: Floats = np.exp(scores - scores.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)


def _tally(votes: Ints, weights: Floats, n_classes: int) -> Floats:
    """Summed weights of the votes by class: [N, C]."""
    classes = range(n_classes)
    found = np.stack([(votes == c) @ weights for c in classes], 1)
    return found.astype(np.float64)
