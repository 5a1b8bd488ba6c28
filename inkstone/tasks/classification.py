"""Classification: a text, or a pair of texts, gets one label, or all labels that hold.

One label: −log softmax(scores)[label], summed over examples. Several: each label is a yes or no of
its own, −log σ(±score), averaged over the labels. With balanced weights an example of label c
counts n / (C · n_c), n_c being how often c occurs (King and Zeng 2001, section 4.2, with equal
shares of the classes). Where F1 matters more than accuracy, because one label is rare, the
probability from which it is given can be chosen on examples that the model has not seen ("auto";
Lipton et al. 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure").
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor

from inkstone.config import Section
from inkstone.errors import DataError, UsageError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows, label_text
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec, Truncate
from inkstone.text.normalize import normalize
from inkstone.text.rows import listed
from inkstone.text.table import Record

FAMILY = "bert"  # where the recipe names none


def _as_label(value: Any) -> Any:
    """1 and "1" are the same label."""
    return str(value) if type(value) is int else value


class Config(Section):
    """Settings of a classification task.

    Attributes:
        text_field: Field of the text.
        pair_field: Field of a second text that belongs to it (an answer, a hypothesis); None where
            there is one text.
        label_field: Field of the label, a name or a whole number; with `multi_label` a list.
        multi_label: An example may have several labels, or none.
        threshold: Probability from which a label of several, or the positive one of two, counts as
            given; "auto" takes the one with the highest F1 on examples that are held out (in a
            model that is fitted at once: on each quarter of the training examples, by a model
            fitted to the others).
        class_weights: "balanced" lets rare labels count as much as frequent ones.
        truncate: What is left of a text that is too long: its beginning ("end" is cut off), its
            end ("start" is cut off), or a quarter from the beginning and the rest from the end.
        agreement: α of R-Drop (Liang et al. 2021, equation 4): a step reads its examples twice,
            with other units dropped, and what the two passes say is held together; a second pass
            costs as much as the first. 1 to 5 helps where few examples are trained on. 0: none.
        positive: The label whose F1 is reported where there are two; None takes the second.
    """

    text_field: str = Field(default="text", min_length=1)
    pair_field: str | None = Field(default=None, min_length=1)
    label_field: str = Field(default="label", min_length=1)
    multi_label: bool = False
    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] = 0.5
    class_weights: Literal["none", "balanced"] = "none"
    truncate: Truncate = "end"
    agreement: float = Field(default=0.0, ge=0, le=100)
    positive: Annotated[str | None, BeforeValidator(_as_label)] = None


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what it is.

    Attributes:
        text: The text.
        labels: Its label, or all that hold.
        pair: The second text of a pair.
    """

    text: str
    labels: tuple[str, ...] = ()
    pair: str | None = None


@dataclass(frozen=True, slots=True)
class Classification:
    """What a text was taken for.

    Attributes:
        label: The likeliest label; of two, the one that the threshold gives.
        score: Its probability.
        labels: All labels from the threshold up, likeliest first; just `label` where an example
            has one.
        scores: Probability of every label.
    """

    label: str
    score: float
    labels: tuple[str, ...]
    scores: Mapping[str, float]

    def __str__(self) -> str:
        return f"{', '.join(self.labels) or '–'}  {self.score:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"label": self.label, "score": self.score, "labels": list(self.labels),
                "scores": dict(self.scores)}  # fmt: skip


class Task(_base.Task[Example, Classification]):
    """Texts to labels."""

    NAME = "classification"
    UNIT = "example"
    HEADS: ClassVar = {"encoder": "sequence", "linear": ""}
    FIELDS = ("text_field", "label_field")
    LABELS = "label_field"
    config: Config

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        text = self.text(record, "text_field")
        pair = None if self.config.pair_field is None else self.text(record, "pair_field")
        if not labelled:
            return Example(text, (), pair)
        field, value = self.config.label_field, self.need(record, "label_field")
        if not self.config.multi_label:
            return Example(text, (label_text(value, record.place, field),), pair)
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        if not isinstance(value, list):
            raise DataError(
                f"{record.place}: field {field!r} holds no list of labels",
                fix='write ["one", "another"] there, or set task.multi_label=false',
            )
        labels = sorted({label_text(part, record.place, field) for part in value})
        return Example(text, tuple(labels), pair)

    def example(self, text: str) -> Example:
        return Example(normalize(text))

    def texts(self, example: Example) -> Iterable[str]:
        return (example.text,) if example.pair is None else (example.text, example.pair)

    def answers(self, example: Example) -> Iterable[str]:
        return example.labels

    def learn(self, examples: Iterable[Example]) -> _base.Task[Example, Classification]:
        """As in the base class.

        Raises:
            DataError: Also where `positive` is none of the labels.
        """
        learned, wanted = super().learn(examples), self.config.positive
        if wanted is not None and wanted not in learned.ids:
            raise DataError(
                f"task.positive is {wanted!r}, but the labels are {listed(learned.labels)}",
                fix="name one of them",
            )
        return learned

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        texts = codec.tokenizer.encode_batch([example.text for example in examples])
        paired = self.config.pair_field is not None
        pairs = codec.tokenizer.encode_batch([e.pair or "" for e in examples]) if paired else None
        rows = []
        for number, example in enumerate(examples):
            labels = [self.ids[label] for label in example.labels if label in self.ids]
            if pairs is None:
                row: Row = {"ids": codec.one(texts[number], self.config.truncate)}
            else:
                both = codec.two(texts[number], pairs[number], self.config.truncate)
                row = dict(zip(("ids", "types"), both, strict=True))
            rows.append([row | {"labels": labels}])
        return rows

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        input_ids, mask = pad([row["ids"] for row in rows], pad_id)
        types = pad([row["types"] for row in rows], 0)[0] if "types" in rows[0] else None
        if self.config.multi_label:
            targets = torch.zeros(len(rows), len(self.labels))
            for number, row in enumerate(rows):
                targets[number, torch.from_numpy(np.asarray(row["labels"], np.int64))] = 1.0
        else:
            labels = [int(r["labels"][0]) if len(r["labels"]) else IGNORE_INDEX for r in rows]
            targets = torch.tensor(labels)
        return TokenBatch(input_ids, targets, mask, types)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        scores = model(**batch.inputs).float()
        loss = self._nats(scores, batch)
        if self.config.agreement and model.training:
            again = model(**batch.inputs).float()  # other units are dropped
            weight = self.config.agreement / 2
            loss = (loss + self._nats(again, batch)) / 2 + weight * self._apart(scores, again)
        return loss, len(batch.targets) if self.config.multi_label else batch.n_targets

    def _nats(self, scores: Tensor, batch: TokenBatch) -> Tensor:
        """The loss of scores [B, L], summed over the examples."""
        weight = self._weights(scores.device)
        if not self.config.multi_label:
            return F.cross_entropy(scores, batch.targets, weight, reduction="sum")
        each = F.binary_cross_entropy_with_logits(
            scores, batch.targets, pos_weight=weight, reduction="none"
        )
        return each.mean(1).sum()

    def _apart(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean of both Kullback–Leibler divergences of what two passes say, summed."""
        if self.config.multi_label:
            return ((a.sigmoid() - b.sigmoid()) * (a - b)).mean(1).sum() / 2
        p, q = a.log_softmax(-1), b.log_softmax(-1)
        return ((p.exp() - q.exp()) * (p - q)).sum() / 2

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        scores = model(**batch.inputs).float()
        p = scores.sigmoid() if self.config.multi_label else scores.softmax(-1)
        return list(p.cpu().numpy())

    def predict(self, example: Example, outputs: Sequence[Any]) -> Classification:
        return self.classification(outputs[0])

    def classification(self, probabilities: Any) -> Classification:
        """The answer from the probabilities [L] of the labels."""
        order = np.argsort(-np.asarray(probabilities), kind="stable")
        threshold = 0.5 if self.config.threshold == "auto" else self.config.threshold
        best = int(order[0])
        if len(self.labels) == 2 and not self.config.multi_label and threshold != 0.5:
            place = self.ids[self.positive]
            best = place if probabilities[place] >= threshold else 1 - place
        given = [best]
        if self.config.multi_label:
            given = [int(i) for i in order if probabilities[i] >= threshold]
        return Classification(
            self.labels[best],
            float(probabilities[best]),
            tuple(self.labels[i] for i in given),
            {self.labels[i]: float(probabilities[i]) for i in order},
        )

    @property
    def metrics(self) -> tuple[str, ...]:
        if self.config.multi_label:
            return "micro_f1", "macro_f1", "exact_match"
        return ("accuracy", "f1") if len(self.labels) == 2 else ("accuracy", "macro_f1")

    @property
    def positive(self) -> str:
        """The label whose F1 is meant where there are two."""
        wanted = self.config.positive
        return self.labels[-1] if wanted is None or wanted not in self.ids else wanted

    def given(self, example: Example) -> Any:
        return example.labels if self.config.multi_label else example.labels[0]

    def found(self, prediction: Classification) -> Any:
        return prediction.labels if self.config.multi_label else prediction.label

    def units(self, answer: Any) -> list[frozenset[str]]:
        return [frozenset(answer if self.config.multi_label else (answer,))]

    def always(self, label: str, example: Example) -> Any:
        return (label,) if self.config.multi_label else label

    def mistake(self, example: Example, prediction: Classification) -> Mistake | None:
        if self.given(example) == self.found(prediction):
            return None
        sure = prediction.score
        if not self.config.multi_label:  # as sure of the wrong one as unsure of the right one
            sure = 1.0 - prediction.scores.get(example.labels[0], 0.0)
        text = " ‖ ".join(self.texts(example))
        found = ", ".join(prediction.labels)
        return Mistake(sure, text, ", ".join(example.labels), f"{found} ({prediction.score:.1%})")

    @property
    def unsettled(self) -> bool:
        several = self.config.multi_label
        return self.config.threshold == "auto" and (several or len(self.labels) == 2)

    def settle(
        self, examples: Sequence[Example], predictions: Sequence[Classification]
    ) -> str | None:
        """Choose the threshold, in the middle between two probabilities that were met."""
        names = self.labels if self.config.multi_label else (self.positive,)
        p = np.array([found.scores[name] for found in predictions for name in names])
        right = np.array([name in one.labels for one in examples for name in names])
        if not right.any():
            return None
        order = np.argsort(-p, kind="stable")
        hits, given = np.cumsum(right[order]), np.arange(1, len(p) + 1)
        f1 = 2 * hits / (given + right.sum())
        ends = np.flatnonzero(np.diff(p[order], append=-1.0))  # equal ones fall together
        best = int(ends[np.argmax(f1[ends])])
        below = p[order[best + 1]] if best + 1 < len(p) else 0.0
        threshold = float(np.clip((p[order[best]] + below) / 2, 1e-6, 1 - 1e-6))
        self.config = self.config.model_copy(update={"threshold": threshold})
        reached = f"F1 {100 * f1[best]:.1f} on {len(examples):,} unseen examples"
        return f"threshold {threshold:.3g}: {reached}"

    def fit(self, model: Any, examples: Sequence[Example]) -> None:
        if self.config.multi_label:
            raise UsageError(
                "a bag of words gives one label an example",
                fix="choose another model.family, or set task.multi_label=false",
            )
        texts = [" ".join(self.texts(example)) for example in examples]
        model.fit(texts, [example.labels[0] for example in examples])

    def apply(self, model: Any, examples: Sequence[Example]) -> list[Classification]:
        places = [model.labels.index(label) for label in self.labels]
        texts = [" ".join(self.texts(example)) for example in examples]
        found = model.predict_probabilities(texts)[:, places]
        return [self.classification(row) for row in found]

    def _weights(self, device: torch.device) -> Tensor | None:
        """[L]: what a label counts; None for all alike."""
        if self.config.class_weights == "none" or not self.counts:
            return None
        counts = torch.tensor([float(self.counts[label]) for label in self.labels], device=device)
        return counts.sum() / (len(counts) * counts)
