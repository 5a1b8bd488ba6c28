"""Similarity: texts that belong together get vectors that point the same way.

Every text goes through one encoder; its states are pooled and brought to length 1 (Reimers and
Gurevych 2019), so that a dot product is a cosine. A batch of pairs (xᵢ, yᵢ) is a question with many
answers: which of all y in the batch belongs to xᵢ? (Henderson et al. 2017, section 4; Karpukhin et
al. 2020, section 3.2; van den Oord et al. 2018, equation 4, with cosine over a temperature τ):

    loss = Σ over i:  −log( exp(cos(xᵢ, yᵢ)/τ) / Σ over j: exp(cos(xᵢ, yⱼ)/τ) )

A y that belongs to xᵢ too, because the pair or the text occurs again, is no wrong answer and is
left out of the sum. Of pairs with scores sᵢ the loss is CoSENT (Su 2022), which asks for the right
order, or the squared distance of cosine and score.

All pairs of a step are compared with one another, however small the micro-batches: the vectors of a
step are computed a part at a time, and again in the backward pass, so that the states of one part
are in memory (Gao et al. 2021). Shapes: U different texts, C different candidates, D width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.nn.contrastive import cosent, infonce
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.nn.pooling import pool
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec, Truncate, cut
from inkstone.tasks._pairs import Candidates, Different, PairBatch
from inkstone.text.bm25 import BM25
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value
from inkstone.text.table import Record
from inkstone.tokenizers.roles import BERT, ROBERTA, Roles

FAMILY = "bert"  # where the recipe names none
RANKED_AT_ONCE = 1024  # texts whose candidates are compared together
Vector = npt.NDArray[np.float32]


class Config(Section):
    """Settings of a similarity task.

    Attributes:
        text_field: Field of the text: a question, say.
        pair_field: Field of what belongs to it: the passage that answers.
        negative_field: Field of a text, or a list of texts, that do not belong to it though they
            look as if: one more wrong answer for every pair of the batch. None: there are none.
        score_field: Field of how much alike the two are, a number; None where all belong together.
        loss: "infonce" of pairs, "cosent" or "cosine" of scored pairs; "auto" takes the first that
            fits.
        temperature: τ; small ones look at the hardest wrong answers.
        symmetric: Also ask which text belongs to a given pair; the mean of both is taken.
        pooling: What of the states of the tokens is the vector: their mean, or the first one.
        top_score: The score of two texts that mean the same, for "cosine": 5 in STS.
        truncate: What is left of a text that is too long, as in classification.
    """

    text_field: str = Field(default="text", min_length=1)
    pair_field: str = Field(default="pair", min_length=1)
    negative_field: str | None = Field(default=None, min_length=1)
    score_field: str | None = Field(default=None, min_length=1)
    loss: Literal["auto", "infonce", "cosent", "cosine"] = "auto"
    temperature: float = Field(default=0.05, gt=0, le=100)
    symmetric: bool = False
    pooling: Literal["mean", "cls"] = "mean"
    top_score: float = Field(default=1.0, gt=0, le=1e6)
    truncate: Truncate = "end"

    @model_validator(mode="after")
    def _loss_fits(self) -> Self:
        scored = self.score_field is not None
        if self.loss != "auto" and scored != (self.loss != "infonce"):
            pairs = "scored pairs" if scored else "pairs without task.score_field"
            raise ValueError(f"the loss {self.loss} does not fit {pairs}")
        if scored and (self.negative_field or self.symmetric):
            raise ValueError("negative_field and symmetric are for pairs without scores")
        return self


@dataclass(frozen=True, slots=True)
class Example:
    """A text and what belongs to it.

    Attributes:
        text: The text.
        pair: What belongs to it; None for a text that only wants a vector.
        negatives: What does not.
        score: How much alike the two are.
    """

    text: str
    pair: str | None = None
    negatives: tuple[str, ...] = ()
    score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """A text's vector, and how near its pair is.

    Attributes:
        vector: [D], of length 1.
        pair: [D] of the other text; None where there is none.
    """

    vector: Vector
    pair: Vector | None = None

    @property
    def score(self) -> float | None:
        """The cosine of the two."""
        return None if self.pair is None else float(self.vector @ self.pair)

    def __str__(self) -> str:
        if self.score is not None:
            return f"{self.score:.4f}"
        return " ".join(f"{x:.4f}" for x in self.vector)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        if self.score is not None:
            return {"score": self.score}
        return {"vector": [round(float(x), 6) for x in self.vector]}


class Task(_base.Task[Example, Similarity]):
    """Texts to vectors."""

    NAME = "similarity"
    UNIT = "pair"
    HEADS: ClassVar = {"encoder": "none"}
    FIELDS = ("text_field", "pair_field")
    LENGTHS = ("ids", "pair")
    config: Config

    @staticmethod
    def roles(kind: str) -> Roles | None:
        return BERT if kind == "wordpiece" else ROBERTA  # with a frame that others put on too

    @property
    def scored(self) -> bool:
        """Whether pairs have scores."""
        return self.config.score_field is not None

    @property
    def pooling(self) -> Literal["mean", "cls"]:
        return self.config.pooling

    @property
    def watched(self) -> bool:
        return True

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        text = self.text(record, "text_field")
        has_pair = record.values.get(self.config.pair_field) is not None
        pair = self.text(record, "pair_field") if labelled or has_pair else None
        if not labelled:
            return Example(text, pair)
        score = self._score(record) if self.scored else None
        return Example(text, pair, self._negatives(record), score)

    def _score(self, record: Record) -> float:
        value = self.need(record, "score_field")
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise DataError(
                f"{record.place}: field {self.config.score_field!r} holds no number",
                fix="write how much alike the two texts are, or remove the line",
            )
        return number

    def _negatives(self, record: Record) -> tuple[str, ...]:
        field = self.config.negative_field
        value = record.values.get(field) if field is not None else None
        texts = [value] if isinstance(value, str) else value or []
        if not isinstance(texts, list) or not all(isinstance(x, str) for x in texts):
            raise DataError(
                f"{record.place}: field {field!r} holds {kind_of_value(value)}, not texts",
                fix='write "one text" or ["one", "another"] there',
            )
        return tuple(normalize(x) for x in texts if x.strip())

    def example(self, text: str) -> Example:
        return Example(normalize(text))

    def texts(self, example: Example) -> Iterable[str]:
        return (example.text, *self.together(example), *example.negatives)

    def together(self, example: Example) -> Iterable[str]:
        """Candidates stay on one side; texts that are compared with them go along."""
        return () if example.pair is None else (example.pair,)

    def learn(self, examples: Iterable[Example]) -> Task:
        return self  # there are no labels

    # --- batches ---------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        before, after = codec.tokenizer.frame()  # as `inference.embed` frames what it is given
        room = codec.max_length - len(before) - len(after)

        def framed(texts: Sequence[str]) -> list[list[int]]:
            encoded = codec.tokenizer.encode_batch(list(texts))
            return [[*before, *cut(ids, room, self.config.truncate), *after] for ids in encoded]

        texts, pairs = framed([e.text for e in examples]), framed([e.pair or "" for e in examples])
        rows = []
        for example, text, pair in zip(examples, texts, pairs, strict=True):
            row: Row = {"ids": text, "pair": pair if example.pair is not None else []}
            if self.config.negative_field is not None:
                negatives = framed(example.negatives)
                row["negatives"] = [i for ids in negatives for i in ids]
                row["ends"] = np.cumsum([len(ids) for ids in negatives], dtype=np.int64)
            if self.scored:  # a column holds whole numbers: the four bytes of the score
                row["score"] = np.array([example.score or 0.0], np.float32).view(np.int32)
            rows.append([row])
        return rows

    def collate(self, rows: Rows, pad_id: int) -> PairBatch:
        texts, candidates = Different(), Different()
        own = torch.tensor([texts.number(row["ids"]) for row in rows])
        targets = torch.tensor(
            [candidates.number(row["pair"]) if len(row["pair"]) else IGNORE_INDEX for row in rows]
        )
        for row in rows:
            if len(row.get("ends", ())):
                for negative in np.split(np.asarray(row["negatives"]), row["ends"][:-1]):
                    candidates.number(negative)
        ids, mask = pad(texts.rows, pad_id)
        pair_ids, pair_mask = pad(candidates.rows, pad_id)
        scores = None
        if self.scored:
            bits = np.concatenate([np.asarray(row["score"], np.int32) for row in rows])
            scores = torch.from_numpy(bits.view(np.float32).copy())
        return PairBatch(
            ids, targets, mask, own=own, pair_ids=pair_ids, pair_mask=pair_mask, scores=scores
        )

    # --- loss and vectors ------------------------------------------------------------------------

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        texts, candidates = self._vectors(model, batch)
        assert isinstance(batch, PairBatch) and batch.own is not None
        tau = self.config.temperature
        if batch.scores is None:
            total = infonce(texts, candidates, batch.own, batch.targets, tau)
            if self.config.symmetric:
                back = infonce(candidates, texts, batch.targets, batch.own, tau)
                total = (total + back) / 2
            return total, len(batch)
        cosines = (texts[batch.own] * candidates[batch.targets]).sum(-1)
        if self.config.loss == "cosine":
            return (cosines - batch.scores / self.config.top_score).square().sum(), len(batch)
        return cosent(cosines, batch.scores, tau) * len(batch), len(batch)

    def _vectors(self, model: Any, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Of texts [U, D] and candidates [C, D], of length 1."""
        assert isinstance(batch, PairBatch) and batch.attention_mask is not None
        assert batch.pair_ids is not None and batch.pair_mask is not None

        def part(ids: Tensor, mask: Tensor) -> Tensor:
            states = model.hidden(ids, attention_mask=mask).float()
            return F.normalize(pool(states, mask, self.config.pooling), dim=-1)

        def whole(ids: Tensor, mask: Tensor) -> Tensor:
            size = batch.at_once or len(ids)
            if len(ids) <= size or not torch.is_grad_enabled():
                return part(ids, mask)
            some = zip(ids.split(size), mask.split(size), strict=True)
            return torch.cat([checkpoint(part, *pair, use_reentrant=False) for pair in some])

        texts = whole(batch.input_ids, batch.attention_mask)
        if not len(batch.pair_ids):
            return texts, texts[:0]
        return texts, whole(batch.pair_ids, batch.pair_mask)

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        assert isinstance(batch, PairBatch) and batch.own is not None
        texts, candidates = (x.cpu().numpy() for x in self._vectors(model, batch))
        both = zip(batch.own.tolist(), batch.targets.tolist(), strict=True)
        return [(texts[i], None if j == IGNORE_INDEX else candidates[j]) for i, j in both]

    def predict(self, example: Example, outputs: Sequence[Any]) -> Similarity:
        return Similarity(*outputs[0])

    # --- how it is judged ------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("spearman",) if self.scored else ("mrr_at_10", "recall_at_1", "recall_at_10")

    def given(self, example: Example) -> Any:
        return example.score if self.scored else (example.text, example.pair)

    def found(self, prediction: Similarity) -> Any:
        return prediction.score if self.scored else (prediction.vector, prediction.pair)

    def among(self, found: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """Of pairs without scores: the place of the right candidate among all, from 1."""
        if self.scored or isinstance(found[0], int):
            return list(found)
        candidates = Candidates(given)
        vectors = np.stack([found[i][1] for i in candidates.first])
        places: list[int] = []
        for start in range(0, len(found), RANKED_AT_ONCE):
            some = np.stack([text for text, _ in found[start : start + RANKED_AT_ONCE]])
            for scores in some @ vectors.T:
                places.append(candidates.place(given[len(places)][0], scores))
        return places

    def simplest(self, examples: Sequence[Example]) -> tuple[str, list[Any]] | None:
        """BM25, which knows words only."""
        pairs = [(example.text, example.pair or "") for example in examples]
        candidates = Candidates(pairs)
        counts = BM25.of(candidates.numbers)
        if not self.scored:
            return "BM25", [candidates.place(text, counts.scores(text)) for text, _ in pairs]
        numbers = candidates.numbers
        return "BM25", [float(counts.scores(text)[numbers[pair]]) for text, pair in pairs]

    def mistake(self, example: Example, prediction: Similarity) -> Mistake | None:
        """The farther apart what belongs together, the worse."""
        if example.pair is None or prediction.score is None:
            return None
        if example.score is None:
            found = f"cosine {prediction.score:.3f}"
            return Mistake(-prediction.score, example.text, example.pair, found)
        away = abs(prediction.score - example.score / self.config.top_score)
        found = f"cosine {prediction.score:.3f}"
        return Mistake(away, f"{example.text} ‖ {example.pair}", f"{example.score:g}", found)
