"""The model of seconds: a bag of words whose features are counted once, over the whole table.

Labels are few, unlabelled texts are many: which words there are is learned from all of them, and
only their weights from the labels. So each new fit takes milliseconds. Classes count alike however
few of their examples have been met: the first labels of a person are no measure of the shares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from inkstone import registry
from inkstone.errors import DataError
from inkstone.labelling.votes import ABSTAIN, Floats, Ints
from inkstone.models._features import Features
from inkstone.models._grams import Counts
from inkstone.models.bag_of_words import Config, Model
from inkstone.text.bm25 import CJK

# a first choice, not a measured one: python -m benchmarks.labels --choose compares it with others
WORDS = Config(word_ngrams=1, class_weights="balanced")
CHARACTERS = Config(word_ngrams=0, char_ngrams=2, class_weights="balanced")
FOLDS = 4
SAMPLE = 1000  # texts that are looked at for their script


@dataclass(frozen=True)
class Bag:
    """The texts of a table as counts.

    Attributes:
        features: What is counted.
        counts: [N, F].
        config: Of the models that are fitted to them.
    """

    features: Features
    counts: Counts
    config: Config

    @staticmethod
    def of(texts: Sequence[str], config: Config | None = None) -> Bag:
        """Choose the features of texts and count them.

        Args:
            texts: All of them, labelled or not.
            config: What is counted; None: words, or, of scripts that set no spaces between them,
                characters and pairs of characters.

        Raises:
            DataError: There is nothing that occurs in two of them.
        """
        config = config or (CHARACTERS if unspaced(texts) else WORDS)
        features, counts = Features.fit(texts, config)
        if not features.n_features:
            raise DataError(
                f"no word occurs in two of the {len(texts)} texts", fix="give more examples"
            )
        return Bag(features, counts, config)

    def more(self, texts: Sequence[str]) -> Bag:
        """Other texts, counted alike."""
        return Bag(self.features, self.features.counts(texts), self.config)

    def take(self, rows: Ints) -> Bag:
        """These rows alone."""
        return Bag(self.features, self.counts.take(rows), self.config)

    def fit(self, rows: Ints, labels: Sequence[str]) -> Model:
        """A model of these rows; at least two labels must occur."""
        model = Model(self.config)
        return model.fit_counts(self.features, self.counts.take(rows), list(labels))

    def probabilities(self, model: Model, labels: Sequence[str]) -> Floats:
        """[N, C] in the order of `labels`; 0 for those that the model has not met."""
        found = model.probabilities_of(self.counts)
        p = np.zeros((len(found), len(labels)))
        p[:, [labels.index(str(label)) for label in model.labels]] = found
        return p

    @cached_property
    def directions(self) -> Any:
        """[N, F] tf-idf rows of length 1, a sparse matrix of scipy: their products are cosines."""
        sparse = registry.extra("scipy.sparse", "eval")
        counts = self.counts
        frequency = counts.with_values(np.ones_like(counts.values)).column_sums()
        idf = np.log((1 + counts.shape[0]) / (1 + frequency)) + 1
        values = counts.values * idf[counts.columns]
        length = np.sqrt(np.bincount(counts.rows, values**2, counts.shape[0]))
        starts = np.searchsorted(counts.rows, np.arange(counts.shape[0] + 1))
        parts = ((values / length[counts.rows]).astype(np.float32), counts.columns, starts)
        return sparse.csr_matrix(parts, shape=counts.shape)

    def better(self, people: Ints, rules: Ints, labels: Sequence[str]) -> Ints:
        """Whether to learn from people alone, or from rules too where people are silent.

        Each way is judged on every fourth of people's labels after learning from the others: rules
        are worth much while people have said little, and hold back who has heard enough from them.

        Args:
            people: [N] places in `labels`, or ABSTAIN.
            rules: [N] likewise.
            labels: The classes.

        Returns:
            [N] what to learn from.
        """
        both = np.where(people != ABSTAIN, people, rules)
        given = np.flatnonzero(people != ABSTAIN)
        right = [0, 0]
        for fold in range(FOLDS):
            part = given[fold::FOLDS]
            for way, known in enumerate((people, both)):
                rest = known.copy()
                rest[part] = ABSTAIN
                rows = np.flatnonzero(rest != ABSTAIN)
                if len(part) and len(np.unique(rest[rows])) > 1:
                    model = self.fit(rows, [labels[c] for c in rest[rows]])
                    p = self.take(part).probabilities(model, labels)
                    right[way] += int((p.argmax(1) == people[part]).sum())
        return people if right[0] > right[1] else both


def unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters belong to a script that sets no spaces between words."""
    some = "".join(texts[:SAMPLE])
    letters = sum(map(len, re.findall(r"\w+", some)))
    return 2 * len(re.findall(f"[{CJK}]", some)) > letters
