"""Scores of predicted answers, with how far chance could have moved them.

The interval is the percentile bootstrap (Efron and Tibshirani 1993, section 13.3): the examples are
drawn again with replacement 1,000 times, the score is taken each time, and the middle 95 % of the
values are the interval. It says what other test examples could have given, not other training runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone import registry
from inkstone.errors import DataError
from inkstone.evaluation.metrics import spans
from inkstone.tasks._answers import is_exact, overlap
from inkstone.text import rouge

RESAMPLES = 1000
Weights = npt.NDArray[np.float64]
"""[N]: how often each example was drawn."""
Valued = Callable[[Weights], float]


@dataclass(frozen=True)
class Score:
    """A score and its 95 % interval.

    Attributes:
        name: Of the metric.
        value: From 0 to 1; BLEU and chrF from 0 to 100.
        low: Lower end of the interval.
        high: Upper end.
        definition: What was counted, in words.
    """

    name: str
    value: float
    low: float
    high: float
    definition: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    @property
    def scale(self) -> float:
        """What makes it a number from 0 to 100."""
        return 1.0 if self.name in (*TEXT_METRICS, "perplexity", "margin") else 100.0

    @property
    def shown(self) -> str:
        """For people: "91.52 (90.80 to 92.20)"."""
        value, low, high = (self.scale * x for x in (self.value, self.low, self.high))
        return f"{value:.2f} ({low:.2f} to {high:.2f})"


def score(
    task: Any,
    found: Sequence[Any],
    given: Sequence[Any],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[Score]:
    """The scores that a task is judged by.

    Args:
        task: A task of `inkstone.tasks`.
        found: Predicted answers, as `task.found` gives them.
        given: The right ones, as `task.given` gives them.
        resamples: Of the bootstrap; 0 for none, then the interval is the value.
        seed: Of the resampling.

    Raises:
        DataError: There is nothing to score.
    """
    if not len(given):
        raise DataError("there are no examples to score")
    found = task.among(found, given)
    result = []
    draws = [_draw(len(given), seed, i) for i in range(resamples)]
    for name in task.metrics:
        if name in TEXT_METRICS:
            result.append(TEXT_METRICS[name](task, found, given, draws))
            continue
        definition, prepare = METRICS[name]
        value = prepare(task, found, given)
        if value is None:  # these examples hold nothing of the kind
            continue
        values = [value(w) for w in draws] or [value(np.ones(len(given)))]
        low, high = np.percentile(values, [2.5, 97.5])
        text = definition.format(positive=getattr(task, "positive", ""))
        result.append(Score(name, value(np.ones(len(given))), float(low), float(high), text))
    return result


def share(
    name: str, right: Sequence[bool] | npt.NDArray[np.bool_], definition: str, *, seed: int = 0
) -> Score:
    """How many of some things are right, with its interval.

    How many of N drawn with replacement are right is binomial, so that none need be drawn.
    """
    n, value = len(right), float(np.mean(right))
    drawn = np.random.default_rng(seed).binomial(n, value, RESAMPLES) / n
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Score(name, value, float(low), float(high), definition)


def values(task: Any, found: Sequence[Any], given: Sequence[Any]) -> dict[str, float]:
    """The scores alone, quickly: for looks during training. Those that need a text are left out."""
    ones, found = np.ones(len(given)), task.among(found, given)
    prepared = {n: METRICS[n][1](task, found, given) for n in task.metrics if n in METRICS}
    return {name: value(ones) for name, value in prepared.items() if value is not None}


def _draw(n: int, seed: int, number: int) -> Weights:
    drawn = np.random.default_rng((seed, number)).integers(0, n, n)
    return np.bincount(drawn, minlength=n).astype(np.float64)


# --- one label an example ------------------------------------------------------------------------


def _accuracy(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    right = np.array([f == g for f, g in zip(found, given, strict=True)], np.float64)
    return lambda w: float(w @ right / w.sum())


def _f1(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    f = np.array([x == task.positive for x in found], np.float64)
    g = np.array([x == task.positive for x in given], np.float64)
    return _ratio(f * g, f, g)


def _macro_f1(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    names = sorted({*found, *given})
    number = {name: i for i, name in enumerate(names)}
    f, g = (np.array([number[x] for x in part]) for part in (found, given))
    right = f == g

    def value(w: Weights) -> float:
        tp = np.bincount(f[right], w[right], len(names))
        total = np.bincount(f, w, len(names)) + np.bincount(g, w, len(names))
        there = total > 0
        return float((2 * tp[there] / total[there]).mean())

    return value


# --- several labels an example -------------------------------------------------------------------


def _hot(task: Any, answers: Sequence[Any]) -> npt.NDArray[np.float64]:
    return np.array([[label in answer for label in task.labels] for answer in answers], np.float64)


def _micro_f1(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    f, g = _hot(task, found), _hot(task, given)
    return _ratio((f * g).sum(1), f.sum(1), g.sum(1))


def _macro_f1_of_sets(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    f, g = _hot(task, found), _hot(task, given)

    def value(w: Weights) -> float:
        tp, total = w @ (f * g), w @ (f + g)
        there = total > 0
        return float((2 * tp[there] / total[there]).mean()) if there.any() else 0.0

    return value


def _any_macro_f1(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    several = isinstance(given[0], tuple)
    return (_macro_f1_of_sets if several else _macro_f1)(task, found, given)


def _exact_match(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    return _accuracy(task, [frozenset(x) for x in found], [frozenset(x) for x in given])


# --- tags ----------------------------------------------------------------------------------------


def _token_accuracy(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    pairs = list(zip(found, given, strict=True))
    right = np.array([sum(a == b for a, b in zip(f, g, strict=True)) for f, g in pairs], float)
    total = np.array([len(g) for g in given], float)
    return lambda w: float(w @ right / max(1.0, w @ total))


def _span_f1(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
    have = [set(spans(tags)) for tags in found]
    want = [set(spans(tags)) for tags in given]
    right = np.array([len(h & w) for h, w in zip(have, want, strict=True)], float)
    return _ratio(right, np.array([*map(len, have)], float), np.array([*map(len, want)], float))


def _ratio(right: Weights, found: Weights, given: Weights) -> Valued:
    """F1 from counts of each example."""

    def value(w: Weights) -> float:
        total = float(w @ found + w @ given)
        return float(2 * (w @ right) / total) if total else 0.0

    return value


# --- dialogue ------------------------------------------------------------------------------------


def _perplexity(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued | None:
    """Of the examples whose answer is (nats, tokens)."""
    pairs = [f if isinstance(f, tuple) else (0.0, 0) for f in found]
    nats, tokens = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    if not tokens.any():
        return None

    def value(w: Weights) -> float:
        return math.exp(min(700.0, float(w @ nats) / max(1.0, float(w @ tokens))))

    return value


def _rating_accuracy(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued | None:
    """Of the examples whose answer is yes or no."""
    rated = np.array([g is not None for g in given], np.float64)
    right = np.array([f == g for f, g in zip(found, given, strict=True)], np.float64) * rated
    if not rated.any():
        return None
    return lambda w: float(w @ right) / max(1.0, float(w @ rated))


# --- preferences ---------------------------------------------------------------------------------


def _mean(values: Sequence[float]) -> Valued | None:
    """Of those that are numbers."""
    numbers = np.array(values, np.float64)
    there = np.isfinite(numbers)
    if not there.any():
        return None
    return lambda w: float(w[there] @ numbers[there]) / max(1.0, float(w[there].sum()))


def _above(values: Sequence[float], tie: float = 0.0) -> Valued | None:
    """The share above zero; what is nearer to it than `tie` counts half."""
    return _mean([0.5 if abs(x) <= tie else 0.5 + 0.5 * float(np.sign(x)) for x in values])


def _margins(found: Sequence[Any]) -> list[float]:
    return [math.nan if f.margin is None else f.margin for f in found]


# --- texts that belong together ------------------------------------------------------------------


def _recall_at(most: int) -> Callable[..., Valued]:
    def prepare(task: Any, found: Sequence[int], given: Sequence[Any]) -> Valued:
        hit = (np.array(found) <= most).astype(np.float64)
        return lambda w: float(w @ hit / w.sum())

    return prepare


def _mrr_at_10(task: Any, found: Sequence[int], given: Sequence[Any]) -> Valued:
    places = np.array(found, np.float64)
    part = np.where(places <= 10, 1 / places, 0.0)
    return lambda w: float(w @ part / w.sum())


def _spearman(task: Any, found: Sequence[float], given: Sequence[float]) -> Valued:
    columns = [np.unique(np.array(x, np.float64), return_inverse=True)[1] for x in (found, given)]

    def value(w: Weights) -> float:
        ranks = []
        for column in columns:  # equal values share the mean of their ranks
            counts = np.bincount(column, w)
            ranks.append((counts.cumsum() - (counts - 1) / 2)[column])
        a, b = (rank - w @ rank / w.sum() for rank in ranks)
        spread = math.sqrt(float(w @ (a * a)) * float(w @ (b * b)))
        return float(w @ (a * b)) / spread if spread else 0.0

    return value


# --- answers -------------------------------------------------------------------------------------


def _of_each(value: Callable[[str, Sequence[str]], float]) -> Callable[..., Valued]:
    """The mean of what each found answer is worth beside the right ones."""

    def prepare(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
        worth = np.array([value(f, g) for f, g in zip(found, given, strict=True)], np.float64)
        return lambda w: float(w @ worth / w.sum())

    return prepare


# --- summaries -----------------------------------------------------------------------------------


def _rouge(kind: str) -> Callable[[Any, Sequence[Any], Sequence[Any]], Valued]:
    def prepare(task: Any, found: Sequence[Any], given: Sequence[Any]) -> Valued:
        """Answers are tuples of texts: the one that was found, and all that are right."""
        pairs = zip(found, given, strict=True)
        each = np.array([rouge.best(kind, text, right) for (text,), right in pairs])
        return lambda w: float(w @ each / w.sum())

    return prepare


_OF_SUMMARIES = " (F1, no stemming) with the nearest summary that is given, the mean"

METRICS: Mapping[str, tuple[str, Callable[[Any, Sequence[Any], Sequence[Any]], Valued | None]]] = {
    "accuracy": ("share of examples with the right label", _accuracy),
    "f1": ("F1 of the label {positive!r}: 2 tp / (2 tp + fp + fn)", _f1),
    "macro_f1": ("unweighted mean of the F1 of every label", _any_macro_f1),
    "micro_f1": ("F1 over all labels of all examples together", _micro_f1),
    "exact_match": ("share of examples with exactly the right set of labels", _exact_match),
    "token_accuracy": ("share of words with the right tag", _token_accuracy),
    "perplexity": ("exp of the mean loss of a word that is learned", _perplexity),
    "preference_accuracy": (
        "share of pairs whose margin is above zero; within 0.01 of it counts half",
        lambda task, found, given: _above(_margins(found), tie=0.01),
    ),
    "margin": (
        "mean of β · (gain of the chosen answer − gain of the other), gains in nats",
        lambda task, found, given: _mean(_margins(found)),
    ),
    "chosen_likelier": (
        "share of pairs whose chosen answer is likelier as a whole; long answers never are",
        lambda task, found, given: _above([f.chosen - f.rejected for f in found]),
    ),
    "rating_accuracy": ("share of ratings on the right side of a half", _rating_accuracy),
    "mrr_at_10": ("mean of 1 / place of the right candidate, 0 beyond the tenth", _mrr_at_10),
    "recall_at_1": ("share of texts whose right candidate comes first", _recall_at(1)),
    "recall_at_10": ("share of texts whose right candidate is among the first 10", _recall_at(10)),
    "spearman": ("rank correlation of cosine and score, ties at their mean rank", _spearman),
    "answer_f1": (
        "mean F1 of words with the nearest right answer, as SQuAD's script",
        _of_each(overlap),
    ),
    "answer_exact": (
        "share of answers with the words of a right one, as SQuAD's script",
        _of_each(is_exact),
    ),
    "answerable_accuracy": (
        "share of questions rightly answered or left without an answer",
        _of_each(lambda found, given: bool(found) == bool(given)),
    ),
    "rouge1": (f"words in common{_OF_SUMMARIES}", _rouge("rouge1")),
    "rouge2": (f"pairs of words in common{_OF_SUMMARIES}", _rouge("rouge2")),
    "rougeL": (f"longest common subsequence of words{_OF_SUMMARIES}", _rouge("rougeL")),
    "span_f1": ("micro F1 of spans with the right type, start and end, as conlleval", _span_f1),
}


# --- texts ---------------------------------------------------------------------------------------


def _sacrebleu(name: str) -> Callable[..., Score]:
    def measured(
        task: Any, found: Sequence[str], given: Sequence[str], draws: Sequence[Weights]
    ) -> Score:
        metrics = registry.extra("sacrebleu.metrics", "eval")
        tokenizer = task.config.bleu_tokenizer
        metric = metrics.BLEU(tokenize=tokenizer) if name == "bleu" else metrics.CHRF()
        result = metric.corpus_score(list(found), [list(given)])
        signature = str(metric.get_signature())
        # Its own bootstrap averages Python's and NumPy's numbers together, a TypeError for chrF.
        counts = np.array(metric._extract_corpus_statistics(list(found), [list(given)]), float)
        drawn = [metric._compute_score_from_stats((w @ counts).tolist()).score for w in draws]
        low, high = np.percentile(drawn or [result.score], [2.5, 97.5])
        return Score(name, result.score, float(low), float(high), f"sacrebleu: {signature}")

    return measured


TEXT_METRICS: Mapping[str, Callable[..., Score]] = {
    "bleu": _sacrebleu("bleu"),
    "chrf": _sacrebleu("chrf"),
}
