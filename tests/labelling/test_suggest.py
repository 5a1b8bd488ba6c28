"""Suggestions: the unsure ones, spread out, the same each time; self-training keeps its balance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy
from sklearn.feature_extraction.text import TfidfVectorizer

from inkstone.errors import DataError
from inkstone.labelling.guess import CHARACTERS, WORDS, Bag
from inkstone.labelling.suggest import spread, suggest, uncertainty
from inkstone.labelling.teach import self_train
from inkstone.labelling.votes import ABSTAIN
from tests.labelling.conftest import sentences

ROWS = sentences(300)
TEXTS = [row["text"] for row in ROWS]
LABELS = ("money", "sport")
TRUTH = np.array([LABELS.index(row["truth"]) for row in ROWS])


@pytest.fixture(scope="module")
def bag() -> Bag:
    return Bag.of(TEXTS)


def test_uncertainty_against_scipy() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(4), 50)
    np.testing.assert_allclose(uncertainty(p, "entropy"), entropy(p, axis=1) / np.log(4))
    two = np.sort(p, 1)
    np.testing.assert_allclose(uncertainty(p), 1 - (two[:, 3] - two[:, 2]))
    assert uncertainty(np.array([[1.0, 0, 0]]), "entropy")[0] == 0


def test_directions_against_sklearn(bag: Bag) -> None:
    ours = bag.directions
    words = [bag.features.name(i) for i in range(ours.shape[1])]
    theirs = TfidfVectorizer(token_pattern=r"\w+", vocabulary=words).fit_transform(TEXTS)
    np.testing.assert_allclose(ours.toarray(), theirs.toarray(), atol=1e-6)


def test_spread_is_the_greedy_k_center(bag: Bag) -> None:
    candidates, centers = np.arange(0, 300, 7), np.array([1, 2])
    dense = bag.directions.toarray()
    have, wanted = list(centers), []
    for _ in range(6):
        closest = (dense[candidates] @ dense[have].T).max(1)
        closest[[list(candidates).index(i) for i in wanted]] = 2
        wanted.append(int(candidates[closest.argmin()]))
        have.append(wanted[-1])
    assert spread(bag, candidates, centers, 6).tolist() == wanted


def test_suggestions_are_unsure_and_the_same_each_time(bag: Bag) -> None:
    known = np.arange(8)
    model = bag.fit(known, [LABELS[c] for c in TRUTH[known]])
    p = bag.probabilities(model, LABELS)
    free = np.arange(8, 300)
    found = suggest(bag, 5, free, known, p, seed=3)
    assert found.tolist() == suggest(bag, 5, free.copy(), known, p, seed=3).tolist()
    assert len(set(found.tolist())) == 5 and set(found.tolist()) <= set(free.tolist())
    unsure = uncertainty(p)
    assert unsure[found].min() >= np.sort(unsure[free])[-25]
    cold = suggest(bag, 5, free, known[:0], None, seed=1)
    assert cold.tolist() != suggest(bag, 5, free, known[:0], None, seed=2).tolist()
    assert len(suggest(bag, 9, free[:3], known, p)) == 3 and not len(
        suggest(bag, 9, known[:0], known, p)
    )


def test_self_training_helps_and_keeps_its_balance(bag: Bag) -> None:
    gains = []
    for seed in range(8):
        some = np.random.default_rng(seed).permutation(300)[:8]
        known = np.full(300, ABSTAIN)
        known[some] = TRUTH[some]
        if len(set(TRUTH[some])) < 2:
            continue
        allowed = np.setdiff1d(np.arange(300), some)
        before = bag.probabilities(bag.fit(some, [LABELS[c] for c in TRUTH[some]]), LABELS)
        taught = self_train(bag, known, LABELS, allowed, rounds=4, share=0.8)
        after = bag.probabilities(taught.model, LABELS)
        gains.append((after.argmax(1) == TRUTH).mean() - (before.argmax(1) == TRUTH).mean())
        assert (taught.labels[some] == TRUTH[some]).all(), "a person's labels are not touched"
        quota = np.bincount(TRUTH[some], minlength=2) / 8 * 0.8 * len(allowed)
        assert (np.bincount(taught.labels[allowed][taught.labels[allowed] >= 0], minlength=2)
                <= np.round(quota)).all()  # fmt: skip
        again = self_train(bag, known, LABELS, allowed, rounds=4, share=0.8)
        assert (again.labels == taught.labels).all()
    assert np.mean(gains) > 0.03


def test_confidence_is_a_floor(bag: Bag) -> None:
    known = np.full(300, ABSTAIN)
    known[:20] = TRUTH[:20]
    taught = self_train(bag, known, LABELS, np.arange(20, 300), rounds=1, confidence=0.9)
    taken = np.flatnonzero(taught.labels[20:] != ABSTAIN) + 20
    assert (taught.p[taken].max(1) >= 0.9).all()
    nothing = self_train(bag, known, LABELS, np.arange(20, 300), rounds=1, confidence=1.0)
    assert nothing.taken == (0,) and np.isnan(nothing.thresholds).all()


def test_scripts(bag: Bag) -> None:
    assert bag.config == WORDS
    assert Bag.of(["房间很大，服务很好", "房间很小 wifi"]).config == CHARACTERS
    with pytest.raises(DataError, match="no word"):
        Bag.of(["one", "two"])


def test_taking_rows(bag: Bag) -> None:
    rows = np.array([5, 0, 5, 299])
    np.testing.assert_array_equal(bag.take(rows).directions.shape, (4, bag.directions.shape[1]))
    counts = bag.counts.take(rows)
    for row, i in enumerate(rows):
        mine, theirs = counts.rows == row, bag.counts.rows == i
        np.testing.assert_array_equal(counts.columns[mine], bag.counts.columns[theirs])
        np.testing.assert_array_equal(counts.values[mine], bag.counts.values[theirs])
