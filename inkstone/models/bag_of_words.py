"""Bag of words: logistic regression on n-gram counts, the classifier that others have to beat.

A text is the vector f of how often each n-gram of words or characters occurs in it. By `weighting`:

    binary        1 where f > 0
    counts        f
    tfidf         f · (ln((1+D) / (1+df)) + 1), each text scaled to length 1
    sublinear_tfidf  the same of 1 + ln f (Manning, Raghavan and Schütze 2008, section 6.4.1)
    naive_bayes   1 where f > 0, times r, the log-count ratio of Wang and Manning, "Baselines and
                  Bigrams: Simple, Good Sentiment and Topic Classification" (2012, section 2.1):

                      r = ln((p / ‖p‖₁) / (q / ‖q‖₁)),   p = α + Σ f over texts of the class,
                                                         q = α + Σ f over the others

with D training texts of which df hold the n-gram. Their support vector machine is replaced by
logistic regression, so that there are probabilities. More than two classes are each told from the
rest, with their own r, and the probabilities are scaled to sum to 1.

Shapes: N texts, C classes, R rows of weights (1 where C = 2, else C), F features.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from inkstone import registry
from inkstone.config import Section
from inkstone.errors import CheckpointError, ModelError
from inkstone.files import atomic_folder, read_json, write_json
from inkstone.models import _arrays
from inkstone.models._features import Features
from inkstone.models._grams import Counts
from inkstone.text.segment import Segmenter

KIND = "linear"
VOCABULARY = "vocabulary.json"
MAX_VOCABULARY_BYTES = 1 << 28
TEXTS_AT_ONCE = 4096

Label = str | int
Floats = npt.NDArray[np.float64]


class Config(Section):
    """What is counted, how it is weighted, and how strongly the weights are held back."""

    word_ngrams: int = Field(default=3, ge=0, le=8, description="longest; 0: no words")
    char_ngrams: int = Field(default=0, ge=0, le=12, description="longest; 0: no characters")
    segmenter: Segmenter = "spaces"
    lowercase: bool = True
    min_df: int = Field(default=2, ge=1, description="training texts an n-gram must occur in")
    weighting: Literal["naive_bayes", "tfidf", "sublinear_tfidf", "counts", "binary"] = (
        "naive_bayes"
    )
    alpha: float = Field(default=1.0, gt=0, description="added to counts before the ratio")
    inverse_penalty: float = Field(default=1.0, gt=0, description="C of the logistic regression")
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: rare labels count as much as frequent ones"
    )
    seed: int = Field(default=0, ge=0, lt=1 << 32)

    @model_validator(mode="after")
    def _something_to_count(self) -> Config:
        if not self.word_ngrams and not self.char_ngrams:
            raise ValueError("word_ngrams and char_ngrams are both 0: nothing would be counted")
        return self


PRESETS = {  # chosen on parts of training data: IMDb, SMS spam, ChnSentiCorp
    "reviews": Config(word_ngrams=3),
    "messages": Config(word_ngrams=2, char_ngrams=5),
    "chinese": Config(
        word_ngrams=0, char_ngrams=4, weighting="sublinear_tfidf", inverse_penalty=30
    ),
}


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one n-gram of a text adds to the log-odds of a label."""

    text: str
    value: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a label was given.

    Attributes:
        label: Of the highest probability.
        probability: Its probability.
        bias: Log-odds of the label for an empty text; `bias` and all contributions add up to the
            log-odds of this one.
        contributions: The largest ones by size, for the label (positive) and against it.
    """

    label: Label
    probability: float
    bias: float
    contributions: tuple[Contribution, ...]


class Model:
    """Fits once, then labels texts.

    Args:
        config: Settings.
    """

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or Config()
        self.labels: tuple[Label, ...] = ()
        self._features = Features.empty(self.config)
        self._weights = np.empty((0, 0), np.float32)  # [R, F]
        self._bias = np.empty(0, np.float64)  # [R]

    def fit(self, texts: Sequence[str], labels: Sequence[Label]) -> Model:
        """Choose features and learn the weights.

        Args:
            texts: Training texts.
            labels: One a text, strings or integers.

        Returns:
            The model itself.

        Raises:
            ModelError: Unequal lengths, fewer than two labels, or no feature is left.
            MissingExtraError: scikit-learn, or the segmenter, is not installed.
        """
        if len(texts) != len(labels):
            raise ModelError(f"{len(texts)} texts, but {len(labels)} labels")
        if len(set(labels)) < 2:
            raise ModelError("a classifier needs at least two labels, each a string or an integer")
        features, counts = Features.fit(texts, self.config)
        return self.fit_counts(features, counts, labels)

    def fit_counts(self, features: Features, counts: Counts, labels: Sequence[Label]) -> Model:
        """Learn the weights of features that were chosen before, on more texts than have labels.

        Args:
            features: What is counted.
            counts: [N, F] of the training texts.
            labels: One a text, strings or integers.

        Returns:
            The model itself.

        Raises:
            ModelError: Fewer than two labels, or no feature.
            MissingExtraError: scikit-learn is not installed.
        """
        known = _sound_labels(sorted(set(labels), key=lambda x: (isinstance(x, str), x)))
        if len(known) < 2:
            raise ModelError("a classifier needs at least two labels, each a string or an integer")
        if not features.n_features:
            raise ModelError(
                f"no n-gram occurs in {self.config.min_df} of the {counts.shape[0]} texts",
                fix="lower min_df, or give more text",
            )
        positives = known[1:] if len(known) == 2 else known
        is_label = [np.array([x == label for x in labels]) for label in positives]
        rows = [self._fit_one(features.weigh(counts), y) for y in is_label]
        self.labels, self._features = known, features
        self._weights = np.stack([w for w, _ in rows]).astype(np.float32)
        self._bias = np.array([b for _, b in rows])
        return self

    def predict_probabilities(self, texts: Sequence[str]) -> Floats:
        """[N, C], columns in the order of `labels`; each row sums to 1.

        Raises:
            ModelError: Not fitted.
        """
        self._check_fitted()
        parts = [np.empty((0, len(self.labels)))]
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = self._features.counts(texts[start : start + TEXTS_AT_ONCE])
            parts.append(self.probabilities_of(some))
        return np.concatenate(parts)

    def probabilities_of(self, counts: Counts) -> Floats:
        """`predict_probabilities` of texts whose features are counted already: [N, F] → [N, C]."""
        counts = self._features.weigh(counts)
        pairs = zip(self._weights, self._bias, strict=True)
        positive = _sigmoid(np.stack([counts.times(w) + b for w, b in pairs], axis=1))
        if positive.shape[1] == 1:
            positive = np.concatenate((1 - positive, positive), axis=1)
        scaled: Floats = positive / positive.sum(axis=1, keepdims=True)
        return scaled

    def predict(self, texts: Sequence[str]) -> list[Label]:
        """The most probable label of each text.

        Raises:
            ModelError: Not fitted.
        """
        return [self.labels[i] for i in self.predict_probabilities(texts).argmax(axis=1)]

    def explain(self, text: str, limit: int = 10) -> Explanation:
        """The n-grams that speak most for or against the label that `predict` gives.

        Raises:
            ModelError: Not fitted.
        """
        probabilities = self.predict_probabilities([text])[0]
        best = int(probabilities.argmax())
        row, sign = (best, 1.0) if len(self._weights) > 1 else (0, 1.0 if best else -1.0)
        counts = self._features.weigh(self._features.counts([text]))
        values = sign * counts.values * self._weights[row][counts.columns]
        largest = np.argsort(-np.abs(values), kind="stable")[:limit]
        return Explanation(
            self.labels[best],
            float(probabilities[best]),
            sign * float(self._bias[row]),
            tuple(
                Contribution(self._features.name(int(counts.columns[i])), float(values[i]))
                for i in largest
            ),
        )

    def save(self, folder: Path | str) -> None:
        """Write a folder of config.json, vocabulary.json and model.safetensors, whole or not.

        Raises:
            ModelError: Not fitted.
            CheckpointError: It cannot be written.
        """
        self._check_fitted()
        with atomic_folder(folder) as out:
            write_json(
                out / _arrays.CONFIG,
                {
                    "model_type": "bag_of_words",
                    "format": 1,
                    "labels": list(self.labels),
                    "settings": self.config.model_dump(mode="json"),
                },
            )
            vocabulary = json.dumps(self._features.vocabulary())  # ASCII: half a pair is no UTF-8
            (out / VOCABULARY).write_text(vocabulary, encoding="ascii")
            arrays = self._features.arrays() | {"weights": self._weights, "bias": self._bias}
            _arrays.write_arrays(out / _arrays.ARRAYS, arrays)

    @staticmethod
    def load(folder: Path | str) -> Model:
        """Read what `save` wrote, as if it were hostile.

        Raises:
            CheckpointError: Missing, damaged or inconsistent; the message names the file.
        """
        folder = Path(folder)
        config = _arrays.read_folder_config(folder, "bag_of_words")
        labels = _sound_labels(config.get("labels"))
        if len(labels) < 2:
            raise CheckpointError(f"{folder / _arrays.CONFIG}: labels are not two or more names")
        model = Model(_arrays.read_settings(Config, config, folder))
        vocabulary = read_json(folder / VOCABULARY, MAX_VOCABULARY_BYTES)
        dtypes = {"weights": "float32", "bias": "float64", **Features.dtypes(model.config)}
        arrays = _arrays.read_arrays(folder / _arrays.ARRAYS, dtypes)
        features = Features.read(model.config, vocabulary, arrays, str(folder))
        rows = 1 if len(labels) == 2 else len(labels)
        weights, bias = arrays["weights"], arrays["bias"]
        if weights.shape != (rows, features.n_features) or bias.shape != (rows,):
            raise CheckpointError(
                f"{folder / _arrays.ARRAYS}: weights {weights.shape} and bias {bias.shape} do not "
                f"fit {len(labels)} labels and {features.n_features} features"
            )
        model.labels, model._features = labels, features
        model._weights, model._bias = weights, bias
        return model

    def _fit_one(self, x: Counts, y: npt.NDArray[np.bool_]) -> tuple[Floats, float]:
        """Weights [F] and bias of one label against the rest; the ratio is folded into them."""
        scale = None
        if self.config.weighting == "naive_bayes":
            scale = log_count_ratio(x, y, self.config.alpha)
            x = x.with_values(x.values * scale[x.columns])
        sparse = registry.extra("scipy.sparse", "eval")
        linear = registry.extra("sklearn.linear_model", "eval")
        regression = linear.LogisticRegression(
            C=self.config.inverse_penalty, solver="liblinear", dual=True, max_iter=1000,
            random_state=self.config.seed,
            class_weight="balanced" if self.config.class_weights == "balanced" else None,
        )  # fmt: skip
        starts = np.searchsorted(x.rows, np.arange(x.shape[0] + 1))
        regression.fit(sparse.csr_matrix((x.values, x.columns, starts), shape=x.shape), y)
        weights: Floats = regression.coef_[0] if scale is None else regression.coef_[0] * scale
        return weights, float(regression.intercept_[0])

    def _check_fitted(self) -> None:
        if not self.labels:
            raise ModelError("this classifier has learned nothing yet", fix="call fit() first")


def log_count_ratio(x: Counts, y: npt.NDArray[np.bool_], alpha: float) -> Floats:
    """r of the features: how much likelier each is in a text of the class. [F]."""
    p, q = alpha + x.column_sums(y), alpha + x.column_sums(~y)
    ratio: Floats = np.log((p / p.sum()) / (q / q.sum()))
    return ratio


def _sigmoid(x: Floats) -> Floats:
    result: Floats = 0.5 * (1 + np.tanh(0.5 * x))
    return result


def _sound_labels(found: Any) -> tuple[Label, ...]:
    """Distinct names and numbers; () where it is something else."""
    if not isinstance(found, list | tuple) or not all(type(x) in (str, int) for x in found):
        return ()
    return tuple(found) if len(set(found)) == len(found) else ()
