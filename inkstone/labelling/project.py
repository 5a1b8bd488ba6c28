"""A table of texts, what is known of them, and the model fitted to that: labelling as it stands.

Every row belongs to a part by the hash of its text, whoever reads the table and in whatever order:
a fifth is for checking. People label of both parts, in that proportion; only of the other part the
model picks what comes next, and only from it anything learns. So the score is an honest estimate at
every moment, and nobody has to make a test set first. With a table of test examples all rows teach.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from inkstone.errors import DataError, UsageError
from inkstone.files import write_new
from inkstone.labelling import votes as voting
from inkstone.labelling.guess import Bag
from inkstone.labelling.rules import Rule, vote
from inkstone.labelling.store import Label, Store
from inkstone.labelling.suggest import suggest
from inkstone.labelling.table import Text, read_texts
from inkstone.labelling.teach import Taught, self_train
from inkstone.labelling.votes import ABSTAIN, Floats, Ints

CHECK_ONE_IN = 5
CURVE_POINTS = 20  # that are measured again when a file of labels is opened
Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True, slots=True)
class Point:
    """Of the learning curve.

    Attributes:
        labels: That the model was fitted to.
        accuracy: On the examples for checking.
        low: Lower end of its 95 % interval (Wilson 1927).
        high: Upper end.
        examples: That were checked.
    """

    labels: int
    accuracy: float
    low: float
    high: float
    examples: int


class Project:
    """A table and its labels.

    Args:
        texts: From `read_texts`.
        store: The file of labels.
        seed: Of what is drawn.
        test: Examples with labels to score on, from `read_texts`; () for a fifth of the table.

    Raises:
        DataError: The table's own labels are not among the classes, or no word occurs twice.
        UsageError: The file of labels is about other texts.
    """

    def __init__(
        self, texts: Sequence[Text], store: Store, *, seed: int = 0, test: Sequence[Text] = ()
    ) -> None:
        self.texts, self.store, self.seed, self.test = list(texts), store, seed, list(test)
        self.places = {text.id: i for i, text in enumerate(self.texts)}
        for text in [*self.texts, *self.test]:
            if text.label and text.label not in self.labels:
                raise DataError(
                    f"{text.place}: the label {text.label!r} is none of {', '.join(self.labels)}",
                    fix="add it with --labels, or name another field with --label-field",
                )
        if store.said and self.places.keys().isdisjoint(store.said):
            raise UsageError(
                f"{store.path} holds labels of other texts", fix="choose another file with --out"
            )
        if any(not text.label for text in self.test):
            raise DataError("an example of --test has no label", fix="every one needs one")
        self.bag = Bag.of([text.text for text in self.texts])
        self._test_bag = self.bag.more([text.text for text in self.test]) if self.test else None
        order = np.array([int(text.id[:15], 16) for text in self.texts])
        self.checks = order % CHECK_ONE_IN == 0 if not self.test else np.zeros(len(order), bool)
        self._order = np.argsort(order, kind="stable")  # of the checks: random, but always the same

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.store.labels

    def label_of(self, place: int) -> Label | None:
        """What is known of a row; the table's own word is a person's."""
        text = self.texts[place]
        if self.store.by_person(text.id) or not text.label:
            return self.store.said.get(text.id)
        return Label(text.label, "person", 1.0, "the table")

    def _by_person(self, place: int) -> bool:
        said = self.label_of(place)
        return said is not None and said.by == "person"

    def known(self, *by: str) -> Ints:
        """[N] places in `labels`, of rows that one of these labelled, else ABSTAIN."""
        found = np.full(len(self.texts), ABSTAIN)
        for place in range(len(self.texts)):
            said = self.label_of(place)
            if said is not None and said.by in by:
                found[place] = self.labels.index(said.label)
        return found

    def open_rows(self) -> Ints:
        """Rows that no person has labelled or passed over."""
        known = self.known("person")
        skipped = [text.id in self.store.skipped for text in self.texts]
        return np.flatnonzero((known == ABSTAIN) & ~np.array(skipped))

    def counts(self) -> dict[str, dict[str, int]]:
        """How many labels of each class, by who said so."""
        found = {label: {"person": 0, "rule": 0, "model": 0} for label in self.labels}
        for place in range(len(self.texts)):
            said = self.label_of(place)
            if said is not None:
                found[said.label][said.by] += 1
        return found

    # --- learning --------------------------------------------------------------------------------

    def teachable(self) -> Ints:
        """[N] what a model may learn from: people's labels, and those of rules while they help."""
        people = np.where(self.checks, ABSTAIN, self.known("person"))
        rules = np.where(self.checks, ABSTAIN, self.known("rule"))
        if (rules == ABSTAIN).all():
            return people
        return self.bag.better(people, rules, self.labels)

    def guess(self, known: Ints | None = None) -> Floats | None:
        """[N, C] probabilities by the model; None while fewer than two classes are known."""
        model = self._fit(self.teachable() if known is None else known)
        return None if model is None else self.bag.probabilities(model, self.labels)

    def _fit(self, known: Ints) -> Any:
        rows = np.flatnonzero(known != ABSTAIN)
        if len(np.unique(known[rows])) < 2:
            return None
        return self.bag.fit(rows, [self.labels[c] for c in known[rows]])

    def score(self, known: Ints | None = None) -> Point | None:
        """How well a model that learned these does on what it has not seen; None if unknown."""
        known = self.teachable() if known is None else known
        model = self._fit(known)
        if self._test_bag is not None:
            bag, right = self._test_bag, np.array([self.labels.index(t.label) for t in self.test])
        else:
            said = np.where(self.checks, self.known("person"), ABSTAIN)
            rows = np.flatnonzero(said != ABSTAIN)
            bag, right = self.bag.take(rows), said[rows]
        if model is None or not len(right):
            return None
        found = bag.probabilities(model, self.labels).argmax(1)
        return point(int((known != ABSTAIN).sum()), int((found == right).sum()), len(right))

    def curve(self) -> list[Point]:
        """The score after every so many of a person's labels, in the order they were given."""
        known = np.where(self.checks, ABSTAIN, self.known("person"))
        said = [self.places[id] for id, event in self.store.history
                if event == "label" and id in self.places]  # fmt: skip
        order = [i for i in said if known[i] != ABSTAIN]
        rest = known.copy()
        rest[order] = ABSTAIN  # what the table itself said was there first
        step = max(1, -(-len(order) // CURVE_POINTS))
        found = []
        for end in [*range(step, len(order), step), len(order)]:
            some = rest.copy()
            some[order[:end]] = known[order[:end]]
            found.append(self.score(some))
        return [p for p in found if p is not None]

    # --- what to do next -------------------------------------------------------------------------

    def suggest(self, n: int, p: Floats | None = None) -> list[int]:
        """The rows whose labels would teach most, most useful first.

        Args:
            n: How many at most.
            p: From `guess`, where it is at hand.
        """
        p = self.guess() if p is None else p
        free = self.open_rows()
        free = free[~self.checks[free]]
        known = self.teachable()
        labelled = np.flatnonzero(known != ABSTAIN)
        return suggest(self.bag, n, free, labelled, p, seed=self.seed).tolist()

    def next_check(self) -> int | None:
        """The row to be labelled for checking, if it is one's turn."""
        said = self.known("person") != ABSTAIN
        if not self.checks.any() or said[self.checks].sum() * (CHECK_ONE_IN - 1) >= max(
            1, said[~self.checks].sum()
        ):
            return None
        free = set(self.open_rows().tolist())
        return next((int(i) for i in self._order if self.checks[i] and int(i) in free), None)

    # --- labels from elsewhere, and to elsewhere -------------------------------------------------

    def add(self, data: str | Path, text_field: str, label_field: str) -> int:
        """Labels that a person wrote into another table, such as one of suggestions.

        Returns:
            How many are new; rows without a label, or that a person has labelled, are passed over.

        Raises:
            DataError: A text is not of this table.
        """
        added = 0
        for text in read_texts(data, text_field, label_field):
            if text.label and text.id not in self.places:
                raise DataError(f"{text.place}: this text is not in the table that is labelled")
            if text.label and self._by_person(self.places[text.id]):
                continue
            if text.label:
                self.store.label(text.id, text.label)
                added += 1
        return added

    def export(self, path: str | Path, text_field: str) -> int:
        """Write every labelled text as a line of JSON, as `inkstone train` reads them.

        Returns:
            How many there are.

        Raises:
            UsageError: The file exists, or cannot be written.
        """
        rows = []
        for place, text in enumerate(self.texts):
            said = self.label_of(place)
            if said is not None:
                row = {text_field: text.text, **asdict(said)}
                rows.append(json.dumps(row, ensure_ascii=False) + "\n")
        write_new(path, "".join(rows), "--export")
        return len(rows)

    # --- labels without people -------------------------------------------------------------------

    def apply_rules(self, rules: Sequence[Rule], *, count: bool = False) -> dict[str, Any]:
        """Let rules vote, weigh them, and keep the label of every row that one of them votes on.

        Args:
            rules: The rules.
            count: Count votes instead of weighing them.

        Returns:
            How many rows are covered and were written, and for each rule its coverage, overlap,
            conflict and accuracy: learned from the votes, and measured where people labelled.
        """
        texts = [text.text for text in self.texts]
        votes = vote(rules, texts, [text.fields for text in self.texts], self.labels)
        known, size = self.known("person"), len(self.labels)
        model = voting.LabelModel.fit(votes, size, np.where(self.checks, ABSTAIN, known))
        p = voting.majority(votes, size) if count else model.probabilities(votes)
        covered = np.flatnonzero((votes != ABSTAIN).any(1))
        sources = [
            "; ".join(rules[int(j)].name for j in np.flatnonzero(votes[i] != ABSTAIN))[:1000]
            for i in covered
        ]
        written = self.store.label_many(
            (self.texts[i].id, Label(self.labels[int(p[i].argmax())], "rule",
                                     round(float(p[i].max()), 4), source))
            for i, source in zip(covered, sources, strict=True)
            if known[i] == ABSTAIN and p[i].max() > 1 / size
        )  # fmt: skip
        rows = []
        for j, (rule, fact) in enumerate(zip(rules, voting.facts(votes), strict=True)):
            both = (votes[:, j] != ABSTAIN) & (known != ABSTAIN)
            right = float((votes[both, j] == known[both]).mean()) if both.any() else None
            rows.append({
                "rule": rule.name, "label": rule.label, "coverage": fact.coverage,
                "overlap": fact.overlap, "conflict": fact.conflict,
                "accuracy": float(model.accuracies[j]) if fact.coverage else None,
                "measured": right, "measured_on": int(both.sum()),
            })  # fmt: skip
        both = covered[known[covered] != ABSTAIN]
        agreed = float((p[both].argmax(1) == known[both]).mean()) if len(both) else None
        return {"rows": len(texts), "covered": len(covered), "written": written,
                "measured": agreed, "measured_on": len(both), "rules": rows}  # fmt: skip

    def self_train(
        self, *, rounds: int = 5, share: float = 0.5, confidence: float = 0.0
    ) -> dict[str, Any]:
        """Let the model label what it is sure of, and keep that.

        Returns:
            How many were taken in each round and written, the threshold of each class, and the
            score before and after.

        Raises:
            UsageError: Fewer than two classes are known.
        """
        known = self.teachable()
        if len(np.unique(known[known != ABSTAIN])) < 2:
            raise UsageError(
                "a model needs examples of two labels to teach itself from",
                fix="label some with --serve, or with --rules FILE",
            )
        allowed = np.flatnonzero((known == ABSTAIN) & (self.known("person") == ABSTAIN))
        allowed = allowed[~self.checks[allowed]]
        taught: Taught = self_train(
            self.bag, known, self.labels, allowed,
            rounds=rounds, share=share, confidence=confidence,
        )  # fmt: skip
        source = f"bag_of_words, {int((known != ABSTAIN).sum())} labels, {rounds} rounds"
        written = self.store.label_many(
            (self.texts[i].id, Label(self.labels[int(taught.labels[i])], "model",
                                     round(float(taught.p[i].max()), 4), source))
            for i in allowed if taught.labels[i] != ABSTAIN
        )  # fmt: skip
        before, after = self.score(known), self.score(taught.labels)
        thresholds = zip(self.labels, taught.thresholds, strict=True)
        return {
            "taken": list(taught.taken), "written": written,
            "thresholds": {name: float(t) for name, t in thresholds if np.isfinite(t)},
            "before": before, "after": after,
        }  # fmt: skip


def point(labels: int, right: int, n: int) -> Point:
    """A score with its interval (Wilson 1927, "Probable Inference")."""
    share, z2 = right / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return Point(labels, share, max(0.0, middle - half), min(1.0, middle + half), n)
