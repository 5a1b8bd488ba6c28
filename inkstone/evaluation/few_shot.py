"""In-context evaluation: a task described by a few solved examples in the prompt, no training.

After Brown et al. 2020 ("Language Models are Few-Shot Learners"), section 2.4: K solved examples,
drawn anew for each question from a training set and set apart by a blank line, stand before the
question; K = 0 leaves the question alone. With options, the one whose words the model finds
likeliest is its answer:

    "tokens"  log P(option | prompt) / tokens of the option
    "sum"     log P(option | prompt)
    "answer"  log P(option | prompt) − log P(option | "Answer:")

Without options the model writes, greedily and up to the end of the line, and the answer must be
right word for word.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from inkstone.errors import DataError, UsageError
from inkstone.evaluation import scores
from inkstone.evaluation.questions import Question
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.predict import evaluating
from inkstone.inference.scoring import Row, logprobs

By = Literal["tokens", "sum", "answer"]
APART = "\n\n"  # between two examples
ANSWER = "Answer:"  # the context of an option that knows no question
MAX_TOKENS = 32  # of a written answer
QUESTIONS_AT_ONCE = 256  # whose rows are in memory together
SPARE = 16  # more demonstrations than wanted are drawn, in case some are the question itself
RULES = {
    "tokens": "log P(option | prompt) per token of the option",
    "sum": "log P(option | prompt)",
    "answer": f'log P(option | prompt) − log P(option | "{ANSWER}")',
}


@dataclass(frozen=True)
class FewShotReport:
    """How well a model answers with K solved examples before each question.

    Attributes:
        shots: K.
        accuracy: Share of right answers, with its interval.
        chance: What guessing among the options gives; None where answers are written.
        majority: What the answer gives that is most frequent among the demonstrations, or the
            place of the right option that is.
        examples: Questions.
        shown: Mean number of demonstrations that fitted into the context.
        cut: Questions whose beginning had to be left out.
        rule: What was compared, in words.
        answers: What was answered, in the order of the questions.
    """

    shots: int
    accuracy: scores.Score
    chance: float | None
    majority: float
    examples: int
    shown: float
    cut: int
    rule: str
    answers: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, without the single answers."""
        row = asdict(self)
        del row["answers"]
        return row

    def __str__(self) -> str:
        chance = "–" if self.chance is None else f"{100 * self.chance:.2f}"
        return (
            f"{self.shots} shots: accuracy {self.accuracy.shown}, chance {chance}, "
            f"majority {100 * self.majority:.2f} ({self.examples:,} questions; {self.rule})"
        )


def few_shot(
    generator: Generator,
    questions: Sequence[Question],
    demonstrations: Sequence[Question] = (),
    *,
    shots: Sequence[int] = (0, 1, 8),
    by: By = "tokens",
    shared: bool = False,
    seed: int = 0,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[FewShotReport]:
    """Ask every question with K demonstrations before it, for each K.

    What is drawn depends on the seed and the question's number alone; the one demonstration of
    K = 1 is also the first of K = 8. A question is never its own demonstration. Where a context is
    full, the first demonstrations are left out, then the beginning of the question.

    Args:
        generator: The model and its tokenizer.
        questions: All with options, or all without.
        demonstrations: Where to draw from; () draws from the questions.
        shots: Each K.
        by: What decides between options, as at the head of this file.
        shared: The same demonstrations before all questions: they are read once.
        seed: Of the drawing.
        max_tokens: Of a written answer.
        progress: Told how many questions are done.

    Raises:
        DataError: There are no questions, or too few demonstrations.
        UsageError: A setting is out of range, or the context is too short for an option.
    """
    _check(questions, demonstrations, shots, by)
    pool = demonstrations or questions
    if max(shots) > len(pool) - (pool is questions):
        raise DataError(
            f"{max(shots)} demonstrations are wanted, but there are {len(pool)} to draw from",
            fix="ask for fewer shots, or give a larger training set",
        )
    asker = _Asker(generator, pool, by, max_tokens)
    reports = []
    with evaluating(generator.model):
        for number, k in enumerate(shots):
            drawn = [_draw(q, pool, k, seed, 0 if shared else i) for i, q in enumerate(questions)]
            answers: list[str] = []
            for start in range(0, len(questions), QUESTIONS_AT_ONCE):
                part = slice(start, start + QUESTIONS_AT_ONCE)
                answers += asker(questions[part], drawn[part], shared=shared)
                if progress is not None:
                    progress(number * len(questions) + len(answers))
            reports.append(_report(k, questions, pool, answers, asker))
            asker.shown.clear()
            asker.cut = 0
    return reports


def _check(
    questions: Sequence[Question], pool: Sequence[Question], shots: Sequence[int], by: str
) -> None:
    if not questions:
        raise DataError("there are no questions to ask")
    if not shots or min(shots) < 0:
        raise UsageError(f"shots {list(shots)} are not numbers from 0 up", fix="such as 0,1,8")
    if by not in RULES:
        raise UsageError(f"unknown scoring {by!r}", fix=f"known: {', '.join(RULES)}")
    if len({bool(q.options) for q in (*questions, *pool)}) > 1:
        raise DataError("some questions have options and some have none", fix="ask them apart")


def _draw(
    question: Question, pool: Sequence[Question], k: int, seed: int, number: int
) -> list[int]:
    """Numbers of K demonstrations."""
    if not k:
        return []
    random = np.random.default_rng((seed, number))
    order = random.permutation(len(pool))[: k + SPARE]
    return [int(i) for i in order if pool[i] != question][:k]


class _Asker:
    """Turns questions into ids and the model's opinions into answers."""

    def __init__(
        self, generator: Generator, pool: Sequence[Question], by: By, max_tokens: int
    ) -> None:
        self.generator, self.pool, self.by, self.max_tokens = generator, pool, by, max_tokens
        self.start = generator.encode("")
        self.shown: list[int] = []
        self.cut = 0
        self._demonstrations: dict[int, list[int]] = {}
        self._options: dict[str, list[int]] = {}

    def __call__(
        self, questions: Sequence[Question], drawn: Sequence[list[int]], *, shared: bool
    ) -> list[str]:
        """An answer to each question."""
        prompts = self._encode([q.prompt for q in questions])
        if not questions[0].options:
            heads, prompts = self._fit(prompts, drawn, [self.max_tokens] * len(prompts))
            return self._write(questions, [h + p for h, p in zip(heads, prompts, strict=True)])
        options = [[self._option(q.spaced(option)) for option in q.options] for q in questions]
        longest = [max(map(len, ids)) for ids in options]
        heads, prompts = self._fit(prompts, drawn, longest)
        if shared:  # as many as fit before the longest question
            heads = [min(heads, key=len)] * len(heads)
            self.shown[-len(heads) :] = [min(self.shown[-len(heads) :])] * len(heads)
        found = self._score(heads, prompts, options, shared=shared)
        return [
            question.options[int(np.argmax(row))]
            for question, row in zip(questions, found, strict=True)
        ]

    def _fit(
        self, prompts: list[list[int]], drawn: Sequence[list[int]], after: Sequence[int]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Heads (begin of text and demonstrations) and prompts that leave room for an answer."""
        heads, fitting = [], []
        for prompt, numbers, longest in zip(prompts, drawn, after, strict=True):
            room = self.generator.max_seq_len - len(self.start) - longest
            if room < 1:
                raise UsageError(
                    f"an answer of {longest} tokens does not fit the model's context of "
                    f"{self.generator.max_seq_len}",
                    fix="use a model with a longer context, or shorter answers",
                )
            self.cut += len(prompt) > room
            prompt, shots = prompt[-room:], list(numbers)
            while shots and sum(len(self._shot(i)) for i in shots) + len(prompt) > room:
                del shots[0]
            heads.append([*self.start, *(id_ for i in shots for id_ in self._shot(i))])
            fitting.append(prompt)
            self.shown.append(len(shots))
        return heads, fitting

    def _score(
        self,
        heads: list[list[int]],
        prompts: list[list[int]],
        options: list[list[list[int]]],
        *,
        shared: bool,
    ) -> list[list[float]]:
        """The value of each option of each question."""
        model = self.generator.model
        several = [ids for own in options for ids in own]
        owners = [number for number, own in enumerate(options) for _ in own]
        rows: list[Row]
        if shared:
            contexts = heads[:1]
            rows = [(0, prompts[n] + ids) for n, ids in zip(owners, several, strict=True)]
        else:
            contexts = [head + prompt for head, prompt in zip(heads, prompts, strict=True)]
            rows = list(zip(owners, several, strict=True))
        lengths = [len(ids) for ids in several]
        values = [sum(row) for row in logprobs(model, contexts, rows, lengths)]
        if self.by == "tokens":
            values = [value / n for value, n in zip(values, lengths, strict=True)]
        if self.by == "answer":
            alone = [*self.start, *self.generator.encode(ANSWER)[len(self.start) :]]
            blind = logprobs(model, [alone], [(0, ids) for ids in several], lengths)
            values = [value - sum(row) for value, row in zip(values, blind, strict=True)]
        left = iter(values)
        return [[next(left) for _ in own] for own in options]

    def _write(self, questions: Sequence[Question], prompts: list[list[int]]) -> list[str]:
        config = SamplingConfig(temperature=0.0, max_tokens=self.max_tokens, stop=("\n",))
        texts = [answer.text for answer in self.generator.generate(prompts, config)]
        return [
            _first_word(text) if question.one_word else text.strip()
            for question, text in zip(questions, texts, strict=True)
        ]

    def _shot(self, number: int) -> list[int]:
        """Ids of a solved example and of the blank line after it."""
        if number not in self._demonstrations:
            question = self.pool[number]
            text = question.prompt + question.spaced(question.answers[0]) + APART
            self._demonstrations[number] = self._encode([text])[0]
        return self._demonstrations[number]

    def _option(self, text: str) -> list[int]:
        if text not in self._options:
            self._options[text] = self._encode([text])[0]
            if not self._options[text]:
                raise DataError(f"the option {text!r} has no tokens")
        return self._options[text]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        assert self.generator.tokenizer is not None
        return self.generator.tokenizer.encode_batch(texts)


def _report(
    shots: int,
    questions: Sequence[Question],
    pool: Sequence[Question],
    answers: list[str],
    asker: _Asker,
) -> FewShotReport:
    right = [_right(q, answer) for q, answer in zip(questions, answers, strict=True)]
    accuracy = scores.share("accuracy", right, "share of the questions that are answered right")
    options = bool(questions[0].options)
    chance = float(np.mean([1 / len(q.options) for q in questions])) if options else None
    fixed = len({q.options for q in questions}) == 1
    common = Counter(_key(q, by_place=not fixed) for q in pool).most_common(1)[0][0]
    majority = float(np.mean([_key(q, by_place=not fixed) == common for q in questions]))
    rule = RULES[asker.by] if options else "the greedy answer, word for word"
    shown = float(np.mean(asker.shown))
    return FewShotReport(
        shots, accuracy, chance, majority, len(questions), shown, asker.cut, rule, tuple(answers)
    )


def _right(question: Question, answer: str) -> bool:
    if question.options:
        return answer in question.answers
    return _words(answer) in [_words(text) for text in question.answers]


def _key(question: Question, *, by_place: bool) -> Any:
    """The right answer, or where options differ from question to question, its place."""
    answer = question.answers[0]
    return question.options.index(answer) if by_place and question.options else answer


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _first_word(text: str) -> str:
    return next(iter(text.split()), "")
