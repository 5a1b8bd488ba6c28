"""Summarization by a phrase: the run of words that says what a text is about.

Each word of the text gets a probability p of being one of the summary's, from a model that tags
(`tasks.tagging`): a conditional random field, which is told besides where in the text a word stands
and how often, or an encoder. Chosen is, out of all runs S of one sentence, that with the highest F1
to be expected,

    F(S) ≈ 2 · Σ p(w) / (|S| + length)       over the different words w of S,

with `length` words in a summary: the plug-in rule, which puts expectations into the formula of F1
(Ye et al. 2012, "Optimizing F-Measures: A Tale of Two Approaches", section 4). A sentence that is
chosen whole says more than a summary of four words has room for; a word alone says too little.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from inkstone.tasks import _base, _summaries, tagging
from inkstone.tasks._base import Row, Rows
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import Codec
from inkstone.tasks._summaries import Example, Summary
from inkstone.text import rouge

FAMILY = "crf"  # where the recipe names none
CHOSEN, LEFT = "summary", "other"  # the tags of words
OFTEN = 4  # times in a text that are told apart

Words = list[list[re.Match[str]]]


class Config(_summaries.Config):
    """Settings of a task that chooses a phrase; fields as in `_summaries`.

    Attributes:
        words: Of a phrase, at most.
        length: Words that a summary has. None: the mean of the training examples.
        reach: Words of a text that are looked at.
    """

    words: int = Field(default=12, ge=1, le=1000)
    length: float | None = Field(default=None, gt=0, le=1e6)
    reach: int = Field(default=128, ge=1, le=1 << 20)


class Task(_summaries.Summarizing):
    """Text to a run of its words."""

    NAME: ClassVar = "phrase_extraction"
    UNIT: ClassVar = "word"
    HEADS: ClassVar = {"encoder": "token", "markov": ""}
    LABELS: ClassVar = "summary_field"
    config: Config

    def answers(self, example: Example) -> Iterable[str]:
        return [tag for tags in self._tags(example, self._words(example)) for tag in tags]

    def learn(self, examples: Iterable[Example]) -> _base.Task[Example, Summary]:
        kept = list(examples)
        learned = super().learn(kept)
        learned.alphabet = ""  # no letters are read
        if self.config.length is None:
            lengths = [len(rouge.units(example.summaries[0])) for example in kept]
            length = max(1.0, round(float(np.mean(lengths)), 2))
            learned.config = self.config.model_copy(update={"length": length})
        return learned

    def _words(self, example: Example) -> Words:
        """Words and marks of each sentence, as far as they are looked at."""
        found: Words = []
        left = self.config.reach
        for sentence in example.sentences:
            found.append(list(tagging.WORD.finditer(sentence))[:left])
            left -= len(found[-1])
        return found

    def _tags(self, example: Example, words: Words) -> list[list[str]]:
        """Which words are the summary's."""
        wanted = set(rouge.units(example.summaries[0]))
        return [
            [LEFT if wanted.isdisjoint(rouge.units(m.group())) else CHOSEN for m in some]
            for some in words
        ]

    # --- read by a model that tags ---------------------------------------------------------------

    def _tagger(self, *, marks: bool = False) -> tagging.Task:
        return tagging.Task(
            tagging.Config(marks_field="marks" if marks else None, capitals=False), self.labels
        )

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        whole = []
        for example in examples:
            words = self._words(example)
            tags = self._tags(example, words) if example.summaries else []
            flat = [m.group() for some in words for m in some] or [example.text]
            whole.append(tagging.Example(tuple(flat), tuple(tag for some in tags for tag in some)))
        return self._tagger().encode(whole, codec)

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        return self._tagger().collate(rows, pad_id)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        return self._tagger().loss(model, batch)

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        found = self._tagger().outputs(model, batch, rows)
        return [np.where(tags == self.ids[CHOSEN], p, 1 - p) for tags, p in found]

    def predict(self, example: Example, outputs: Sequence[Any]) -> Summary:
        return self.choose(example, np.concatenate(outputs))

    # --- read by a fitted model ------------------------------------------------------------------

    def fit(self, model: Any, examples: Sequence[Example]) -> None:
        rows = [row for example in examples for row in self._sentences(example)]
        self._tagger(marks=True).fit(model, rows)

    def apply(self, model: Any, examples: Sequence[Example]) -> list[Summary]:
        split = [list(self._sentences(example)) for example in examples]
        tagged = iter(
            self._tagger(marks=True).apply(model, [row for rows in split for row in rows])
        )
        found = []
        for example, rows in zip(examples, split, strict=True):
            p = [
                q if tag == CHOSEN else 1 - q
                for row in islice(tagged, len(rows))
                for tag, q in zip(row.tags, row.scores, strict=True)
            ]
            found.append(self.choose(example, np.array(p)))
        return found

    def _sentences(self, example: Example) -> Iterator[tagging.Example]:
        """Each sentence with words, its tags, and marks: how far into the text, and how often."""
        words = self._words(example)
        tags = self._tags(example, words) if example.summaries else [[] for _ in words]
        often = Counter(m.group().lower() for m in tagging.WORD.finditer(example.text))
        place = 0
        for some, known in zip(words, tags, strict=True):
            if some:
                marks = [
                    f"{(place + i).bit_length()}.{min(often[m.group().lower()], OFTEN)}"
                    for i, m in enumerate(some)
                ]
                place += len(some)
                tokens = tuple(m.group() for m in some)
                yield tagging.Example(tokens, tuple(known), tuple(marks))

    # --- the choice ------------------------------------------------------------------------------

    def choose(self, example: Example, p: npt.NDArray[Any]) -> Summary:
        """The run with the highest F1 to be expected; a text without a word is left as it is.

        Args:
            example: The text.
            p: Probability of each word that is looked at.
        """
        length = self.config.length or 1.0
        best, text, score, place = -1.0, example.text.strip(), 0.0, 0
        begin = 0
        for number, some in enumerate(self._words(example)):
            own = p[begin : begin + len(some)]
            begin += len(some)
            said = [rouge.units(m.group()) for m in some]
            for first, last, size, expected in _runs(said, own, self.config.words):
                value = 2 * expected / (size + length)
                if value > best:
                    best, place, score = value, number, expected / size
                    text = example.sentences[number][some[first].start() : some[last].end()]
        return Summary(text, float(score), (place,))


def _runs(
    said: Sequence[Sequence[str]], p: npt.NDArray[Any], most: int
) -> Iterator[tuple[int, int, int, float]]:
    """First and last word of each run, how many words, and how many of the summary to expect.

    Args:
        said: What ROUGE counts of each word; nothing of a mark.
        p: Of each.
        most: Words at most.
    """
    for first in range(len(said)):
        if not said[first]:
            continue
        seen: set[str] = set()
        size, expected = 0, 0.0
        for last in range(first, len(said)):
            size += len(said[last])
            if size > most and last > first:
                break
            expected += float(p[last]) * len({*said[last]} - seen)
            seen.update(said[last])
            if said[last]:
                yield first, last, size, expected
