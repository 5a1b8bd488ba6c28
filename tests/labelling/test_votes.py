"""Votes of planted rules: the accuracies come back, and believing the better ones pays."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from inkstone.labelling.votes import ABSTAIN, LabelModel, facts, majority

NOISE = (0.01, 0.02, 0.2, 0.25, 0.01, 0.02, 0.02, 0.01, 0.2)  # votes where the class is another
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
    truth, votes = planted(6000, n_classes, seed=n_classes)
    model = LabelModel.fit(votes, n_classes)
    assert np.abs(model.accuracies - PLANTED).max() < 0.06
    believed = model.probabilities(votes).argmax(1) == truth
    counted = majority(votes, n_classes).argmax(1) == truth
    assert believed.mean() > counted.mean() + 0.01


def test_rules_that_know_one_class_each() -> None:
    """Silence is an answer: no class is explained away, as by a model of one accuracy a rule."""
    generator = np.random.default_rng(0)
    truth = (generator.random(5000) < 0.7).astype(int)
    votes = np.full((5000, 9), ABSTAIN)
    for j in range(9):
        own = int(j < 6)
        fires = generator.random(5000) < np.where(truth == own, 0.3, NOISE[j])
        votes[fires, j] = own
    model, some = LabelModel.fit(votes, 2), (votes != ABSTAIN).any(1)
    p = model.probabilities(votes)
    believed = (p.argmax(1) == truth)[some].mean()
    counted = (majority(votes, 2).argmax(1) == truth)[some].mean()
    assert believed > counted + 0.005
    assert abs((p.argmax(1)[some] == 1).mean() - truth[some].mean()) < 0.06
    precision = [(truth[votes[:, j] != ABSTAIN] == int(j < 6)).mean() for j in range(9)]
    assert np.abs(model.accuracies - precision).max() < 0.08
    sure = p.max(1)[some]
    assert abs(sure.mean() - believed) < 0.03, "what it says of itself is so"


def test_probabilities_are_those_of_bayes() -> None:
    """Against the formula, written out for every combination of three votes."""
    answers = np.random.default_rng(0).dirichlet(np.ones(4), (3, 3))
    model = LabelModel(answers, np.array([0.5, 0.3, 0.2]), np.ones(3), 1)
    votes = np.array(list(itertools.product((ABSTAIN, 0, 1, 2), repeat=3)))
    for row, found in zip(votes, model.probabilities(votes), strict=True):
        wanted = np.array(model.shares)
        if (row != ABSTAIN).any():
            for theta, vote in zip(answers, row, strict=True):
                wanted *= theta[:, vote + 1]
        np.testing.assert_allclose(found, wanted / wanted.sum(), rtol=1e-9)


def test_each_step_of_em_makes_the_votes_likelier(monkeypatch: pytest.MonkeyPatch) -> None:
    _, votes = planted(500, 3, seed=1)
    votes = votes[(votes != ABSTAIN).any(1)]
    overall = np.stack([(votes == v).mean(0) for v in (ABSTAIN, 0, 1, 2)], 1)
    reached = []
    for steps in (1, 2, 4, 8, 16):
        monkeypatch.setattr("inkstone.labelling.votes.MAX_STEPS", steps)
        model = LabelModel.fit(votes, 3)
        likely = np.array(model.shares) * np.ones((len(votes), 1))
        for j, theta in enumerate(model.answers):
            likely *= theta[:, votes[:, j] + 1].T
        prior = 4 * (overall[:, None] * np.log(model.answers)).sum() + np.log(model.shares).sum()
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
    model = LabelModel.fit(silent, 4)
    np.testing.assert_allclose(model.probabilities(silent), 0.25)
    assert np.isnan(model.accuracies).all()
    assert LabelModel.fit(np.empty((0, 2), np.int64), 2).accuracies.shape == (2,)
    assert facts(np.empty((0, 1), np.int64))[0].coverage == 0
