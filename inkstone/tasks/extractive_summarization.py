"""Summarization by choosing: the sentences of a text that say most of it, in their order.

Each sentence gets a probability of belonging to the summary. To learn from, the sentences are
chosen that come closest to the summary that is given: greedily, one after another, as long as ROUGE
rises (Nallapati et al. 2017, "SummaRuNNer", section 3.1). An encoder reads [CLS] sentence [SEP]
[CLS] sentence [SEP] … as one row (Liu and Lapata 2019, "Text Summarization with Pretrained
Encoders", section 3.1). A sentence's score is the mean of its tokens' scores, not that of its [CLS]
as there: a [CLS] has first to learn which words are its own, which takes more than a few thousand
texts. A fitted model (bag of words) reads each sentence by itself, with words that say where it
stands.

Of the likeliest sentences one is passed over that repeats three words in a row of those before it
(the same, section 3.1, after Paulus et al. 2017).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import _base, _summaries
from inkstone.tasks._base import Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.tasks._summaries import Example, Summary
from inkstone.text import rouge

FAMILY = "bag_of_words"  # where the recipe names none
CHOSEN, LEFT = "summary", "other"  # the labels of sentences
BLOCKED = 3  # words in a row that are not chosen twice
LONGEST = 10  # places, and tens of words, that are told apart


class Config(_summaries.Config):
    """Settings of a task that chooses sentences; fields as in `_summaries`.

    Attributes:
        sentences: How many are chosen.
        block_repeats: Pass over a sentence that repeats three words in a row.
    """

    sentences: int = Field(default=3, ge=1, le=1000)
    block_repeats: bool = True


class Task(_summaries.Summarizing):
    """Text to some of its sentences."""

    NAME: ClassVar = "extractive_summarization"
    UNIT: ClassVar = "sentence"
    HEADS: ClassVar = {"encoder": "token", "linear": ""}
    LABELS: ClassVar = "summary_field"
    config: Config

    def answers(self, example: Example) -> Iterable[str]:
        chosen = closest(example, self.config.sentences)
        return [CHOSEN if i in chosen else LEFT for i in range(len(example.sentences))]

    def learn(self, examples: Iterable[Example]) -> _base.Task[Example, Summary]:
        learned = super().learn(examples)
        learned.alphabet = ""  # no letters are read
        return learned

    # --- read by an encoder ----------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        flat = codec.tokenizer.encode_batch([s.strip() for e in examples for s in e.sentences])
        pieces = iter(flat)
        return [self._rows(e, [next(pieces) for _ in e.sentences], codec) for e in examples]

    def _rows(self, example: Example, pieces: Sequence[Sequence[int]], codec: Codec) -> list[Row]:
        """One row, or several that are cut between sentences."""
        labels = [self.ids[x] for x in self.answers(example)] if example.summaries else []
        rows: list[Row] = []
        for place, piece in enumerate(pieces):
            framed = codec.one(piece)
            if not rows or len(rows[-1]["ids"]) + len(framed) > codec.max_length:
                rows.append({"ids": [], "parts": [], "labels": []})
            row = rows[-1]
            row["ids"] += framed
            row["parts"] += [len(row["labels"]) + 1] * len(framed)
            row["labels"].append(labels[place] if labels else IGNORE_INDEX)
        return rows

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        input_ids, mask = pad([row["ids"] for row in rows], pad_id)
        segments, _ = pad([row["parts"] for row in rows], 0)
        targets, _ = pad([row["labels"] for row in rows], IGNORE_INDEX)
        return TokenBatch(input_ids, targets, mask, segment_ids=segments)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        total = F.cross_entropy(
            self._scores(model, batch).flatten(0, 1), batch.targets.flatten(), reduction="sum",
            ignore_index=IGNORE_INDEX,
        )  # fmt: skip
        return total, batch.n_targets

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        p = self._scores(model, batch).softmax(-1)[..., _chosen(self.labels)].cpu().numpy()
        return [p[number, : len(row["labels"])] for number, row in enumerate(rows)]

    def _scores(self, model: Any, batch: TokenBatch) -> Tensor:
        """Scores of both labels of every sentence: fp32 [B, K, 2]."""
        assert batch.segment_ids is not None
        own = F.one_hot(batch.segment_ids, batch.targets.shape[1] + 1)[..., 1:].float()  # [B, T, K]
        total = torch.bmm(own.mT, model(**batch.inputs).float())
        return total / own.sum(1)[..., None].clamp_min(1.0)

    def predict(self, example: Example, outputs: Sequence[Any]) -> Summary:
        return self.choose(example, np.concatenate(outputs).tolist())

    # --- read by a fitted model ------------------------------------------------------------------

    def fit(self, model: Any, examples: Sequence[Example]) -> None:
        texts = [text for example in examples for text in placed(example)]
        model.fit(texts, [label for example in examples for label in self.answers(example)])

    def apply(self, model: Any, examples: Sequence[Example]) -> list[Summary]:
        texts = [text for example in examples for text in placed(example)]
        p = model.predict_probabilities(texts)[:, _chosen(model.labels)]
        ends = np.cumsum([len(example.sentences) for example in examples])
        parts = np.split(p, ends[:-1])
        return [self.choose(e, part.tolist()) for e, part in zip(examples, parts, strict=True)]

    # --- the choice ------------------------------------------------------------------------------

    def choose(self, example: Example, p: Sequence[float]) -> Summary:
        """The likeliest sentences, in their order.

        Args:
            example: The text.
            p: Probability of each of its sentences.
        """
        chosen: list[int] = []
        said: set[tuple[str, ...]] = set()
        for place in sorted(range(len(p)), key=lambda i: (-p[i], i)):
            grams = set(_grams(rouge.units(example.sentences[place])))
            if len(chosen) == self.config.sentences:
                break
            if self.config.block_repeats and chosen and grams & said:
                continue
            chosen.append(place)
            said |= grams
        chosen.sort()
        score = float(np.mean([p[i] for i in chosen]))
        return Summary(joined(example, chosen), score, tuple(chosen))


def _chosen(labels: Sequence[Any]) -> int:
    """The column of the chosen; what a folder holds may be somebody else's."""
    if CHOSEN not in labels:
        raise ModelError(f"a model that chooses sentences has the label {CHOSEN!r}; this has none")
    return list(labels).index(CHOSEN)


def joined(example: Example, places: Iterable[int]) -> str:
    """Some sentences as one text."""
    return "".join(example.sentences[i] for i in places).strip()


def closest(example: Example, most: int) -> set[int]:
    """The sentences that come closest to the summaries by ROUGE, found greedily.

    Args:
        example: With summaries.
        most: Sentences at most; at least one is found.
    """
    sentences = [rouge.units(sentence) for sentence in example.sentences]
    wanted = [rouge.units(summary) for summary in example.summaries]
    chosen: set[int] = set()
    reached = -1.0

    def score(place: int) -> float:
        words = [word for i in sorted({*chosen, place}) for word in sentences[i]]
        return max(sum(kind(words, w) for kind in rouge.KINDS.values()) for w in wanted)

    while len(chosen) < min(most, len(sentences)):
        scores = {i: score(i) for i in range(len(sentences)) if i not in chosen}
        best = max(scores, key=lambda i: (scores[i], -i))
        if scores[best] <= reached:
            break
        chosen.add(best)
        reached = scores[best]
    return chosen


def placed(example: Example) -> list[str]:
    """Each sentence with words behind it that say where it stands, how long it is, and how much
    of it the rest of the text says too."""
    words = [set(rouge.units(sentence)) for sentence in example.sentences]
    shared = Counter(word for some in words for word in some)
    common = [sum(shared[w] - 1 for w in some) / max(1, len(some)) for some in words]
    rank = np.argsort(np.argsort(-np.array(common), kind="stable"), kind="stable")
    last = len(words) - 1
    return [
        f"{sentence} _first_{min(i, LONGEST)} _last_{min(last - i, LONGEST)} "
        f"_words_{min(len(words[i]) // 5, LONGEST)} _common_{min(int(rank[i]), LONGEST)}"
        for i, sentence in enumerate(example.sentences)
    ]


def _grams(words: Sequence[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(BLOCKED)), strict=False)
