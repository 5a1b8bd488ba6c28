"""How many labels are needed: accuracy by number of labels, for four ways to spend them.

    python -m benchmarks.labels [--picture]     # the table; docs/images/labels.png
    python -m benchmarks.labels --choose        # the model's settings, on training texts alone

A pool of training texts without labels, of which a person labels n: drawn at random, or as
`inkstone label --suggest` proposes them, ten at a time. On top of each, self-training on the rest
of the pool. Rules beside them: keywords that were written down without a look at the data, their
votes weighed by the label model, and the n random labels where there are any. The model is the bag
of words of `inkstone.labelling.guess`. Means of SEEDS draws, on test texts.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import common
from inkstone.labelling.guess import Bag, unspaced
from inkstone.labelling.rules import Rule, vote
from inkstone.labelling.suggest import suggest
from inkstone.labelling.table import read_texts
from inkstone.labelling.teach import self_train
from inkstone.labelling.votes import ABSTAIN, Ints, LabelModel, majority
from inkstone.models.bag_of_words import Config

SIZES = (25, 50, 100, 200, 400, 800)
SEEDS = 3
POOL, TEST = 5000, 2500  # texts at most
BATCH = 10
WAYS = ("random", "active", "random, self-trained", "active, self-trained", "rules + random")
KEYWORDS = {
    "AG News": {
        "0": ["iraq, baghdad, troops, military, soldiers", "president, minister, parliament",
              "killed, bomb, attack, hostage, rebels", "palestinian, israeli, gaza, nuclear",
              "election, vote, united nations, peace talks"],
        "1": ["game, match, season, league", "coach, team, players, quarterback, striker",
              "olympic, olympics, medal, championship, cup", "football, baseball, soccer, tennis",
              "inning, touchdown, goal, yankees, red sox"],
        "2": ["shares, stocks, wall street, investors", "profit, earnings, revenue, sales",
              "oil prices, crude, economy, inflation", "bank, merger, acquisition, deal",
              "quarter, billion, dollar"],
        "3": ["software, microsoft, linux, windows", "internet, web, online, browser, google",
              "computer, chip, wireless, technology", "nasa, space, scientists, researchers",
              "security flaw, virus, spam, hackers"],
    },
    "IMDb": {
        "1": ["excellent, superb, brilliant", "wonderful, amazing, fantastic",
              "loved, enjoyed, favorite", "best film, best movie, masterpiece",
              "highly recommend, must see, great performance", "beautiful, touching, perfect"],
        "0": ["awful, terrible, horrible", "boring, dull, tedious",
              "worst, waste of time, waste", "bad acting, poorly, lame",
              "stupid, ridiculous, pointless", "disappointing, avoid, annoying, fails"],
    },
    "Chinese hotels": {
        "1": ["不错, 很好, 非常好", "满意, 舒适, 舒服", "干净, 整洁", "方便, 热情, 周到",
              "推荐, 下次还会, 值得", "超值, 实惠"],
        "0": ["很差, 太差, 差劲", "失望, 后悔", "脏, 霉味, 异味", "吵, 噪音, 隔音",
              "投诉, 态度恶劣, 态度差", "不会再, 不推荐, 再也不"],
    },
}  # fmt: skip
FILES = {
    "AG News": ("ag-news/train.jsonl.gz", "ag-news/test.jsonl.gz"),
    "IMDb": ("imdb/train.jsonl.gz", "imdb/test.jsonl.gz"),
    "Chinese hotels": ("chnsenticorp-htl/train.jsonl.gz", "chnsenticorp-htl/test.jsonl"),
}
CANDIDATES: dict[str, dict[str, Any]] = {
    "tf-idf": {"weighting": "tfidf", "inverse_penalty": 10.0},
    "naive Bayes": {"weighting": "naive_bayes"},
    "binary": {"weighting": "binary", "inverse_penalty": 0.1},
}


@dataclass(frozen=True)
class Job:
    """A data set: the pool and the test, counted.

    Attributes:
        name: Of the set.
        texts: [N] of the pool.
        truth: [N] their classes.
        bag: [N] counted.
        test: The test texts, counted alike.
        wanted: Their classes.
        labels: The classes' names.
    """

    name: str
    texts: list[str]
    truth: Ints
    bag: Bag
    test: Bag
    wanted: Ints
    labels: tuple[str, ...]

    def accuracy(self, known: Ints) -> float:
        """On the test, of a model that learned these rows."""
        rows = np.flatnonzero(known != ABSTAIN)
        if len(np.unique(known[rows])) < 2:
            return float((self.wanted == known[rows][0]).mean())
        return self._score(self.bag.fit(rows, [self.labels[c] for c in known[rows]]))

    def taught(self, known: Ints) -> float:
        """The same after self-training."""
        if len(np.unique(known[known != ABSTAIN])) < 2:
            return self.accuracy(known)
        allowed = np.flatnonzero(known == ABSTAIN)
        return self._score(self_train(self.bag, known, self.labels, allowed).model)

    def _score(self, model: Any) -> float:
        p = self.test.probabilities(model, self.labels)
        return float((p.argmax(1) == self.wanted).mean())

    def known(self, rows: Ints) -> Ints:
        """[N] the truth of these rows, else ABSTAIN."""
        found = np.full(len(self.truth), ABSTAIN)
        found[rows] = self.truth[rows]
        return found


def read(path: str, most: int) -> tuple[list[str], list[str]]:
    """Texts and labels of a file, `most` of them drawn."""
    rows = read_texts(common.SHARED_DATA / path, "text", "label")
    some = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:most]]
    return [row.text for row in some], [row.label for row in some]


def load(name: str) -> Job:
    """Read and count a data set."""
    train, test = FILES[name]
    (texts, truth), (tests, wanted) = read(train, POOL), read(test, TEST)
    labels = tuple(sorted(set(truth)))
    bag = Bag.of(texts)
    places = [np.array([labels.index(x) for x in part]) for part in (truth, wanted)]
    return Job(name, texts, places[0], bag, bag.more(tests), places[1], labels)


def random_order(job: Job, seed: int) -> Ints:
    """Rows as they are drawn."""
    return np.random.default_rng(seed).permutation(len(job.truth))[: SIZES[-1]]


def active_order(job: Job, seed: int) -> Ints:
    """Rows as they are proposed, each batch by a model of those before it."""
    rows = np.empty(0, np.int64)
    while len(rows) < SIZES[-1]:
        known = job.known(rows)
        p = None
        if len(np.unique(job.truth[rows])) > 1:
            model = job.bag.fit(rows, [job.labels[c] for c in job.truth[rows]])
            p = job.bag.probabilities(model, job.labels)
        free = np.flatnonzero(known == ABSTAIN)
        size = BATCH if len(rows) < 200 else 4 * BATCH
        rows = np.concatenate((rows, suggest(job.bag, size, free, rows, p, seed=seed)))
    return rows


def rules_of(job: Job) -> Ints:
    """[N, R] votes of the keywords."""
    rules = [
        Rule(label=label, name=line, keywords=tuple(line.split(", ")))
        for label, lines in KEYWORDS[job.name].items()
        for line in lines
    ]
    return vote(rules, job.texts, [{}] * len(job.texts), job.labels)


def with_rules(job: Job, votes: Ints, known: Ints) -> float:
    """Accuracy after learning what the rules say, and people where they say something."""
    p = LabelModel.fit(votes, len(job.labels), known).probabilities(votes)
    said = np.where((votes != ABSTAIN).any(1), p.argmax(1), ABSTAIN)
    return job.accuracy(job.bag.better(known, said, job.labels))


def measure(job: Job) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of the table, [way, size] over the seeds; and what the rules do alone."""
    votes = rules_of(job)
    found: dict[tuple[str, int], list[float]] = {}
    for seed in range(SEEDS):
        drawn, proposed = random_order(job, seed), active_order(job, seed)
        for size in SIZES:
            by_chance, by_choice = job.known(drawn[:size]), job.known(proposed[:size])
            values = (job.accuracy(by_chance), job.accuracy(by_choice), job.taught(by_chance),
                      job.taught(by_choice), with_rules(job, votes, by_chance))  # fmt: skip
            for way, value in zip(WAYS, values, strict=True):
                found.setdefault((way, size), []).append(100 * value)
    rows = [
        {"data": job.name, "labels": size}
        | {way: f"{np.mean(found[way, size]):.1f} ± {np.std(found[way, size], ddof=1):.1f}"
           for way in WAYS}
        for size in SIZES
    ]  # fmt: skip
    covered = (votes != ABSTAIN).any(1)
    known = np.full(len(votes), ABSTAIN)
    weighed = LabelModel.fit(votes, len(job.labels)).probabilities(votes).argmax(1)
    counted = majority(votes, len(job.labels)).argmax(1)
    facts = {
        "covered": 100 * covered.mean(),
        "votes counted": 100 * (counted == job.truth)[covered].mean(),
        "votes weighed": 100 * (weighed == job.truth)[covered].mean(),
        "model of the rules' labels": 100 * with_rules(job, votes, known),
        "model of all labels": 100 * job.accuracy(job.truth),
        "pool": len(job.truth), "test": len(job.wanted),
        "curves": {way: [found[way, size] for size in SIZES] for way in WAYS},
    }  # fmt: skip
    return rows, facts


def choose() -> None:
    """Compare settings of the model on training texts that it has not learned from."""
    rows = []
    for name, (train, _) in FILES.items():
        texts, truth = read(train, 4500)
        labels = tuple(sorted(set(truth)))
        classes = np.array([labels.index(x) for x in truth])
        for shape in (1, 2) if not unspaced(texts) else (2, 3):
            ngrams = {"word_ngrams": shape}
            if unspaced(texts):
                ngrams = {"word_ngrams": 0, "char_ngrams": shape}
            for weighting, settings in CANDIDATES.items():
                for weights in ("none", "balanced"):
                    config = Config(**ngrams, **settings, class_weights=weights)
                    bag = Bag.of(texts[:3000], config)
                    other = bag.more(texts[3000:])
                    row: dict[str, Any] = {"data": name, "n-grams": shape, "weighting": weighting,
                                           "classes": weights}  # fmt: skip
                    for size in (50, 100, 200, 400):
                        right = []
                        for seed in range(SEEDS):
                            some = np.random.default_rng(seed).permutation(3000)[:size]
                            model = bag.fit(some, [truth[i] for i in some])
                            p = other.probabilities(model, labels)
                            right.append((p.argmax(1) == classes[3000:]).mean())
                        row[str(size)] = f"{100 * np.mean(right):.1f}"
                    rows.append(row)
    common.report("labels_choose", rows)


def draw(facts: dict[str, dict[str, Any]]) -> None:
    """The curves as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for place, (name, fact) in enumerate(facts.items(), 1):
        axes = figure.add_subplot(1, len(facts), place)
        for way, style in zip(WAYS, ("-C7", "-C0", "--C7", "--C0", "-C2"), strict=True):
            axes.plot(SIZES, np.mean(fact["curves"][way], 1), style, label=way, marker=".")
        axes.axhline(fact["model of all labels"], color="black", linewidth=0.6)
        axes.set_xscale("log")
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
        axes.set_title(f"{name}: {fact['pool']:,} texts", fontsize=10)
        axes.set_xlabel("labels")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("test accuracy, %")
    figure.axes[0].legend(fontsize=8, frameon=False)
    path = common.ROOT / "docs" / "images" / "labels.png"
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--choose", action="store_true")
    parser.add_argument("--picture", action="store_true")
    parser.add_argument("--data", choices=tuple(FILES), action="append")
    arguments = parser.parse_args()
    if arguments.choose:
        choose()
        return
    rows: list[dict[str, Any]] = []
    facts = {}
    for name in arguments.data or FILES:
        began = time.monotonic()
        more, facts[name] = measure(load(name))
        facts[name]["seconds"] = time.monotonic() - began
        rows += more
        print(name, f"{facts[name]['seconds']:.0f} s", flush=True)
    common.report("labels", rows, facts=facts)
    for name, fact in facts.items():
        shown = (f"{k} {v:,.1f}" for k, v in fact.items() if k != "curves")
        print(f"{name}: {', '.join(shown)}")
    if arguments.picture:
        draw(facts)


if __name__ == "__main__":
    main()
