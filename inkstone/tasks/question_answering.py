"""Extractive question answering: the answer to a question is a span of a given text.

A row is [CLS] question [SEP] text [SEP], and every token of it gets two scores, of being the first
and the last of the answer (Devlin et al. 2019, section 4.2). The loss of a row is

    −log Σ over right answers (softmax(b)[i] · softmax(e)[j])

over the tokens of the text and [CLS], which stands for "not here" (section 4.3): where several
people answered, the model may take the answer that it finds the likeliest (maximum marginal
likelihood, Min et al. 2019, "A Discrete Hard EM Approach for Weakly Supervised …"). A text
longer than a row is read in windows that overlap, and the spans of all windows compete:

    p(i, j) = exp(b_i + e_j) / Σ over windows (Σ_i exp b_i) (Σ_j exp e_j),   i ≤ j < i + most

Which words of the text stand in the question, and in how long a run, is told by types of tokens
(the exact match of Chen et al. 2017, "Reading Wikipedia to Answer Open-Domain Questions", section
3.2): a model from scratch does not learn from some thousand questions that equal words are equal.

Where questions may have no answer, the best span has to beat [CLS] by a threshold. Judged by F1 of
the words and by exact match, as SQuAD's own script counts them (`tasks._answers`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.errors import DataError, UsageError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import _base
from inkstone.tasks._answers import is_exact, overlap
from inkstone.tasks._base import Mistake, Row, Rows, knows_types
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer

FAMILY = "bert"  # where the recipe names none
SHOWN = 160  # characters on either side of an answer in the report
TYPES = 5  # of tokens, where they say what stands in the question
NEAR = 256  # rows of the table out of which distractors are taken: of one book, one subject


class Config(Section):
    """Settings of question answering.

    Attributes:
        question_field: Field of the question.
        context_field: Field of the text that holds the answer.
        answers_field: Field of the right answers: a text, a list of texts, a list of objects with
            `text` and `start` (or `answer_start`, in characters), or one object of two such lists.
        unanswerable: Questions may have no answer: an empty list, or empty text.
        threshold: How many nats the best span has to be above "no answer".
        stride: Tokens that two neighboring windows of a long text share.
        max_question_tokens: A longer question is cut.
        max_answer_tokens: A longer span is no answer.
        distractors: In training every text stands once more among up to so many others of the
            table, so that a model which learns from short texts is not misled by long ones (Clark
            and Gardner 2018, section 3.2).
        matches: Tell the model, by types of tokens, which runs of the text stand in the question.
            None: where it begins from scratch and the family has types.
    """

    question_field: str = Field(default="question", min_length=1)
    context_field: str = Field(default="context", min_length=1)
    answers_field: str = Field(default="answers", min_length=1)
    unanswerable: bool = False
    threshold: float = Field(default=0.0, ge=-100, le=100)
    stride: int = Field(default=64, ge=0, le=4096)
    max_question_tokens: int = Field(default=64, ge=1, le=4096)
    max_answer_tokens: int = Field(default=30, ge=1, le=4096)
    distractors: int = Field(default=0, ge=0, le=64)
    matches: bool | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """A question, a text, and where its answers stand.

    Attributes:
        question: The question.
        context: The text.
        answers: Right answers; () where there is none, or where it is to be found.
        starts: The first character of each in the text.
    """

    question: str
    context: str
    answers: tuple[str, ...] = ()
    starts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found.

    Attributes:
        text: The answer; "" for none.
        score: Its probability among all spans.
        start: Its first character in the text.
        end: The character behind its last.
        margin: Nats by which it is above "not here".
    """

    text: str
    score: float
    start: int
    end: int
    margin: float

    def __str__(self) -> str:
        return f"{self.text or '–'}  {self.score:.3f}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"answer": self.text, "score": self.score, "start": self.start, "end": self.end,
                "margin": self.margin}  # fmt: skip


class Best(NamedTuple):
    """The best span of a window; scores in nats.

    Attributes:
        score: b + e of the span.
        start: Its first character.
        end: The character behind its last.
        nowhere: b + e of [CLS].
        total: Logarithm of the sum over all pairs of tokens.
    """

    score: float
    start: int
    end: int
    nowhere: float
    total: float


class Task(_base.Task[Example, Answer]):
    """A question and a text to a span."""

    NAME = "question_answering"
    UNIT = "bound"
    HEADS: ClassVar = {"encoder": "span"}
    FIELDS = ("question_field", "context_field", "answers_field")
    config: Config

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        question = self.text(record, "question_field")
        context = self.text(record, "context_field")
        if not labelled:
            return Example(question, context)
        given = _given(self.need(record, "answers_field"), record.place, self.config.answers_field)
        if not given and not self.config.unanswerable:
            raise DataError(
                f"{record.place}: the question has no answer",
                fix="remove the line, or set task.unanswerable=true",
            )
        written = str(record.values[self.config.context_field])
        answers, starts = [], []
        for text, start in given:
            answer = normalize(text).strip()
            place = _place(answer, start, context, written)
            if place < 0:
                raise DataError(
                    f"{record.place}: the answer {answer[:60]!r} does not stand in the text",
                    fix='mend the line, or skip such lines with text.on_error="skip"',
                )
            answers.append(context[place : place + len(answer)])
            starts.append(place)
        return Example(question, context, tuple(answers), tuple(starts))

    def example(self, text: str) -> Example:
        raise UsageError(
            "a question needs a text that holds the answer",
            fix='inkstone answer RUN "question" --documents FOLDER, or give a table with --input',
        )

    def texts(self, example: Example) -> Iterable[str]:
        return example.question, example.context

    def together(self, example: Example) -> Iterable[str]:
        """Questions on one text stay on one side of a split."""
        return (example.context,)

    def suit(
        self, tokenizer: Tokenizer, fields: Mapping[str, Any], *, scratch: bool
    ) -> dict[str, tuple[Any, str]]:
        has_types = knows_types(fields, "matches", self.config.matches)
        if self.config.matches is not None or not (scratch and has_types):
            return {}
        self.config = self.config.model_copy(update={"matches": True})
        return {"matches": (True, "types of tokens tell what stands in the question")}

    @property
    def token_types(self) -> int:
        return TYPES if self.config.matches else 0

    # --- rows ------------------------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        questions = codec.tokenizer.encode_batch([example.question for example in examples])
        most = min(self.config.max_question_tokens, codec.max_length // 2)
        return [
            self._windows(example, question[:most], codec)
            for example, question in zip(examples, questions, strict=True)
        ]

    def _windows(self, example: Example, question: list[int], codec: Codec) -> list[Row]:
        """A row of each part of the text; its target is every answer that it holds whole."""
        ids, starts, ends = codec.places(example.context)
        room = max(1, codec.max_length - len(codec.two(question, ())[0]))
        step = room - min(self.config.stride, room // 2)
        wanted = []
        for answer, start in zip(example.answers, example.starts, strict=True):
            first = int(np.searchsorted(ends, start, "right"))
            behind = int(np.searchsorted(starts, start + len(answer), "left"))
            wanted.append((first, max(first, behind - 1)))
        matched = matches(question, ids) if self.config.matches else None
        rows: list[Row] = []
        for begin in range(0, max(1, len(ids) - room + step), step):
            part = slice(begin, begin + room)
            framed, types = codec.two(question, ids[part])
            offset = len(codec.two(question, ())[0]) - 1
            if matched is not None:
                types[offset:-1] = matched[part]
            here = [
                offset + place - begin
                for span in dict.fromkeys(wanted)
                if begin <= span[0] and span[1] < begin + len(ids[part])
                for place in span
            ]
            rows.append(
                {
                    "ids": framed, "types": types, "offset": [offset], "target": here or [0, 0],
                    "starts": starts[part], "ends": ends[part],
                }
            )  # fmt: skip
        return rows

    def arrange(self, rows: Iterable[Row], codec: Codec) -> Iterator[Row]:
        most = self.config.distractors
        if not most:
            return iter(rows)
        return _among_others(rows, most, codec.max_length, bool(self.config.matches))

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        input_ids, mask = pad([row["ids"] for row in rows], pad_id)
        types, _ = pad([row["types"] for row in rows], 0)
        candidates = torch.zeros_like(mask)
        candidates[:, 0] = True
        for number, row in enumerate(rows):
            offset = int(row["offset"][0])
            candidates[number, offset : offset + len(row["starts"])] = True
        spans = pad([row["target"] for row in rows], IGNORE_INDEX)[0].unflatten(1, (-1, 2))
        return TokenBatch(input_ids, spans[:, 0], mask, types, candidates=candidates, spans=spans)

    # --- what the model does ---------------------------------------------------------------------

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        assert batch.spans is not None
        known = (
            self._scores(model, batch).log_softmax(1).gather(1, batch.spans.clamp(min=0)).sum(-1)
        )
        known = known.masked_fill(batch.spans[..., 0] == IGNORE_INDEX, -torch.inf)
        return -known.logsumexp(1).sum(), batch.n_targets

    def _scores(self, model: Any, batch: TokenBatch) -> Tensor:
        """[B, T, 2]: of the first and the last token; −∞ where neither can be."""
        assert batch.candidates is not None
        scores = model(**batch.inputs).float()
        return scores.masked_fill(~batch.candidates[..., None], -torch.inf)

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Best]:
        scores = self._scores(model, batch)
        first, last = scores.unbind(-1)
        nowhere = first[:, 0] + last[:, 0]
        total = torch.logsumexp(first, 1) + torch.logsumexp(last, 1)
        spans = first[:, 1:, None] + last[:, None, 1:]  # [B, T − 1, T − 1]
        length = spans.shape[1]
        fits = torch.ones(length, length, dtype=torch.bool, device=spans.device).triu()
        fits &= ~fits.triu(self.config.max_answer_tokens)
        best, place = spans.masked_fill(~fits, -torch.inf).flatten(1).max(1)
        found = []
        for number, row in enumerate(rows):
            offset = int(row["offset"][0])
            start, end = divmod(int(place[number]), length)
            there = bool(best[number] > -torch.inf)  # a text without a single word has no span
            start, end = (start + 1 - offset, end + 1 - offset) if there else (0, 0)
            places = (int(row["starts"][start]), int(row["ends"][end])) if there else (0, 0)
            values = (float(x[number]) for x in (best, nowhere, total))
            score, none, every = values
            found.append(Best(score, *places, none, every))
        return found

    def predict(self, example: Example, outputs: Sequence[Best]) -> Answer:
        best = max(outputs, key=lambda x: x.score)
        nowhere = min(x.nowhere for x in outputs)
        total = float(np.logaddexp.reduce([x.total for x in outputs]))
        margin = best.score - nowhere
        if margin == -np.inf or (self.config.unanswerable and margin <= self.config.threshold):
            return Answer("", float(np.exp(nowhere - total)), 0, 0, margin)
        text = example.context[best.start : best.end]
        return Answer(text, float(np.exp(best.score - total)), best.start, best.end, margin)

    # --- how it is judged ------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        known = ("answer_f1", "answer_exact")
        return (*known, "answerable_accuracy") if self.config.unanswerable else known

    @property
    def watched(self) -> bool:
        return True  # the loss of sure mistakes rises while more and more answers are right

    def given(self, example: Example) -> Any:
        return example.answers

    def found(self, prediction: Answer) -> Any:
        return prediction.text

    def mistake(self, example: Example, prediction: Answer) -> Mistake | None:
        if is_exact(prediction.text, example.answers):
            return None
        badness = prediction.score * (1 - overlap(prediction.text, example.answers))
        place = example.starts[0] if example.starts else prediction.start
        around = example.context[max(0, place - SHOWN) : place + SHOWN]
        return Mistake(
            badness, f"{example.question} ‖ {around}", " / ".join(dict.fromkeys(example.answers)),
            f"{prediction.text} ({prediction.score:.1%})",
        )  # fmt: skip

    def simplest(self, examples: Sequence[Example]) -> tuple[str, list[Any]] | None:
        return "the whole text", [example.context for example in examples]


def matches(question: Sequence[int], text: Sequence[int]) -> list[int]:
    """The type of each token of a text: 1, or 1 + n in a run of n that stands in the question."""
    types = [1] * len(text)
    for n in range(1, TYPES - 1):
        runs = {tuple(question[i : i + n]) for i in range(len(question) - n + 1)}
        for i in range(len(text) - n + 1):
            if tuple(text[i : i + n]) in runs:
                types[i : i + n] = [1 + n] * n
    return types


def _among_others(rows: Iterable[Row], most: int, max_length: int, matched: bool) -> Iterator[Row]:
    """Each row, and behind it the same question to its text among its neighbors in the table."""
    random = np.random.default_rng(0)
    iterator = iter(rows)
    while some := list(islice(iterator, NEAR)):
        texts = list(dict.fromkeys(map(_text_ids, some)))
        places = {text: place for place, text in enumerate(texts)}
        for row in some:
            yield row
            if row["target"][0]:
                own = places[_text_ids(row)]
                first = own - int(random.integers(most + 1))
                ahead = [(text, True) for text in reversed(texts[max(0, first) : own])]
                behind = [(text, False) for text in texts[own + 1 : first + most + 1]]
                yield from _longer(row, [*ahead, *behind], max_length, matched)


def _longer(
    row: Row, others: Sequence[tuple[tuple[int, ...], bool]], max_length: int, matched: bool
) -> Iterator[Row]:
    """The row with others around its text, ahead of it or behind; nothing where none can be there.

    Those that hold an answer's very words cannot, nor more than fit a row.
    """
    spans = zip(row["target"][::2], row["target"][1::2], strict=True)
    answers = [_words(row["ids"][first : last + 1]) for first, last in spans]
    ahead: list[int] = []
    behind: list[int] = []
    for text, is_ahead in others:
        fits = len(row["ids"]) + len(ahead) + len(behind) + len(text) <= max_length
        if fits and not any(answer in _words(text) for answer in answers):
            ahead, behind = ([*text, *ahead], behind) if is_ahead else (ahead, [*behind, *text])
    if not ahead and not behind:
        return
    start, end = row["offset"][0], row["offset"][0] + len(row["starts"])
    more = [0] * (len(ahead) + len(behind))
    joined = [*ahead, *row["ids"][start:end], *behind]
    last = row["types"][-1]
    types = matches(row["ids"][1 : start - 1], joined) if matched else [last] * len(joined)
    yield {
        "ids": [*row["ids"][:start], *joined, *row["ids"][end:]],
        "types": [*row["types"][:start], *types, last],
        "offset": row["offset"],
        "target": [place + len(ahead) for place in row["target"]],
        "starts": [*row["starts"], *more], "ends": [*row["ends"], *more],
    }  # fmt: skip


def _text_ids(row: Row) -> tuple[int, ...]:
    start = row["offset"][0]
    return tuple(row["ids"][start : start + len(row["starts"])])


def _words(ids: Sequence[int]) -> str:
    """Ids as text in which to look for others."""
    return f" {' '.join(map(str, ids))} "


def _given(value: Any, place: str, field: str) -> list[tuple[str, int | None]]:
    """Answers and where they are said to stand, of every form in which they are written.

    Raises:
        DataError: It is none of these forms.
    """
    if isinstance(value, str):
        return [(value, None)] if value.strip() else []
    if isinstance(value, Mapping):  # {"text": [...], "answer_start": [...]}
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        if isinstance(texts, str):
            texts, starts = [texts], [starts]
        if isinstance(texts, list) and (starts is None or isinstance(starts, list)):
            starts = [None] * len(texts) if starts is None else starts
            if len(starts) == len(texts):
                value = [{"text": t, "start": s} for t, s in zip(texts, starts, strict=True)]
    if isinstance(value, list):
        rows = [{"text": row} if isinstance(row, str) else row for row in value]
        if all(isinstance(row, Mapping) and isinstance(row.get("text"), str) for row in rows):
            found = [(row["text"], row.get("start", row.get("answer_start"))) for row in rows]
            return [(t, s if isinstance(s, int) else None) for t, s in found if t.strip()]
    raise DataError(
        f"{place}: field {field!r} holds {kind_of_value(value)} that is no list of answers",
        fix='write ["an answer"] or [{"text": "an answer", "start": 17}] there',
    )


def _place(answer: str, start: int | None, context: str, written: str) -> int:
    """The first character of an answer in the normalised text; −1 where it does not stand there."""
    if start is None or not 0 <= start <= len(written):
        return context.find(answer)
    guess = start if context == written else len(normalize(written[:start]))
    if context.startswith(answer, guess):
        return guess
    before, behind = context.rfind(answer, 0, guess + len(answer)), context.find(answer, guess)
    known = [place for place in (before, behind) if place >= 0]
    return min(known, key=lambda place: abs(place - guess), default=-1)
