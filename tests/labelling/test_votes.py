"""Votes of planted rules: the accuracies come back, and believing the better ones pays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from inkstone.labelling.votes import ABSTAIN, LabelModel, facts, majority

PLANTED = np.array([0.95, 0.85, 0.75, 0.65, 0.6, 0.55, 0.55, 0.55])


def planted(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and votes of rules that are right so often and speak of half of the rows."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(n_classes, size=n)
    wrong = (truth[:, None] + generator.integers(1, n_classes, (n, len(PLANTED)))) % n_classes
    votes = np.where(generator.random(wrong.shape) < PLANTED, truth[:, None], wrong)
    return truth, np.where(generator.random(votes.shape) < 0.6, votes, ABSTAIN)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_planted_accuracies_come_back(n_classes: int) -> None:
    truth, votes = planted(4000, n_classes, seed=n_classes)
    model = LabelModel.fit(votes, n_classes)
    assert np.abs(model.accuracies - PLANTED).max() < 0.06
    believed = model.probabilities(votes).argmax(1) == truth
    counted = majority(votes, n_classes).argmax(1) == truth
    assert believed.mean() > counted.mean() + 0.01


def test_probabilities_are_those_of_bayes() -> None:
    """Against the formula, written out for every combination of three votes."""
    model = LabelModel(np.array([0.9, 0.7, 0.6]), np.array([0.5, 0.3, 0.2]), 1)
    votes = np.array(list(itertools.product((ABSTAIN, 0, 1, 2), repeat=3)))
    for row, found in zip(votes, model.probabilities(votes), strict=True):
        wanted = np.array(model.shares)
        for alpha, vote in zip(model.accuracies, row, strict=True):
            if vote != ABSTAIN:
                wanted *= np.where(np.arange(3) == vote, alpha, (1 - alpha) / 2)
        np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-9)


def test_each_step_of_em_makes_the_votes_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    _, votes = planted(500, 3, seed=1)
    reached = []
    for steps in (1, 2, 4, 8, 16):
        monkeypatch.setattr("inkstone.labelling.votes.MAX_STEPS", steps)
        a = LabelModel.fit(votes, 3).accuracies
        likely = np.full((len(votes), 3), 1 / 3)
        for c in range(3):
            per = np.where(votes == c, a, (1 - a) / 2)
            likely[:, c] *= np.where(votes == ABSTAIN, 1, per).prod(1)
        prior = (7 * np.log(a) + 3 * np.log(1 - a)).sum()
        reached.append(np.log(likely.sum(1)).sum() + prior)
    assert all(b > a for a, b in itertools.pairwise(reached))


def test_known_labels_teach_which_rule_lies() -> None:
    """Two rules that always contradict each other: only a person can say which one is right."""
    truth = np.arange(60) % 2
    votes = np.stack([truth, 1 - truth], 1)
    blind = LabelModel.fit(votes, 2)
    assert blind.accuracies[0] == pytest.approx(blind.accuracies[1])
    known = np.where(np.arange(60) < 10, truth, ABSTAIN)
    told = LabelModel.fit(votes, 2, known)
    assert told.accuracies[0] > 0.8 > 0.3 > told.accuracies[1]
    assert (told.probabilities(votes).argmax(1) == truth).all()


def test_facts_by_hand() -> None:
    votes = np.array([[0, 0, -1], [0, 1, -1], [-1, -1, -1], [1, -1, -1]])
    first, second, third = facts(votes)
    assert (first.coverage, first.overlap, first.conflict) == (0.75, 0.5, 0.25)
    assert (second.coverage, second.overlap, second.conflict) == (0.5, 0.5, 0.25)
    assert (third.coverage, third.overlap, third.conflict) == (0, 0, 0)


def test_nothing_voted_and_nobody_votes() -> None:
    silent = np.full((3, 2), ABSTAIN)
    np.testing.assert_allclose(majority(silent, 4), 0.25)
    np.testing.assert_allclose(LabelModel.fit(silent, 4).probabilities(silent), 0.25)
    assert LabelModel.fit(np.empty((0, 2), np.int64), 2).accuracies.shape == (2,)
    assert facts(np.empty((0, 1), np.int64))[0].coverage == 0
