"""Two answers to one prompt, out of the shapes that tables have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inkstone.errors import DataError
from inkstone.tasks._conversations import (
    ALPACA,
    CONVERSATIONS,
    PAIR,
    Turns,
    no_conversation,
    prompt_in,
    spoken,
    with_answer,
    with_system,
)
from inkstone.tasks._turns import ASSISTANT, USER
from inkstone.text.table import Record

ANSWERS = ("chosen", "rejected")
Pair = tuple[tuple[str, ...], tuple[str, ...], str, str]
"""Who speaks before the answer, what is said, the better answer, the other."""


def pair_in(record: Record, answers: Sequence[Any], field: str | None) -> Pair:
    """A prompt and its two answers.

    Args:
        record: What was said before stands in `messages` (or a name like it), in `prompt`, or in
            Alpaca's `instruction` and `input`; or both answers are whole conversations.
        answers: The better one and the other: texts, messages, or lists of messages.
        field: The field of what was said before; None for the first of these that is there.

    Raises:
        DataError: It has no such shape, a part of it is malformed, or both answers are the same.
    """
    before = _before(record, field)
    if before is None:
        before, chosen, rejected = _parted(record, answers)
    else:
        chosen, rejected = (
            _answer(with_answer(before, value, record.place, name), len(before[0]), record)
            for value, name in zip(answers, ANSWERS, strict=True)
        )
    if chosen == rejected:
        raise DataError(f"{record.place}: both answers are the same", fix="remove the line")
    return (*with_system(record, before), chosen, rejected)


def _before(record: Record, field: str | None) -> Turns | None:
    """What was said before the answers; None where they hold it themselves."""
    names: tuple[str, ...] = (*CONVERSATIONS, PAIR[0]) if field is None else (field,)
    found = next((name for name in names if record.values.get(name)), None)
    if found is not None:
        return prompt_in(record, found)
    if record.values.get(ALPACA[0]):
        return (USER,), (spoken(record, ALPACA[:2]),)
    return None


def _parted(record: Record, answers: Sequence[Any]) -> tuple[Turns, str, str]:
    """Two conversations that differ in the last turn alone."""
    if not all(isinstance(value, list) for value in answers):
        raise no_conversation(record, "prompt, chosen, rejected")
    one, other = (
        with_answer(((), ()), value, record.place, name)
        for value, name in zip(answers, ANSWERS, strict=True)
    )
    before = one[0][:-1], one[1][:-1]
    if before != (other[0][:-1], other[1][:-1]) or not before[0]:
        raise DataError(
            f"{record.place}: {' and '.join(ANSWERS)} do not answer one prompt",
            fix="remove the line, or write the prompt in a field of its own",
        )
    n = len(before[0])
    return before, _answer(one, n, record), _answer(other, n, record)


def _answer(turns: Turns, before: int, record: Record) -> str:
    roles, texts = turns[0][before:], turns[1][before:]
    if roles != (ASSISTANT,):
        raise DataError(
            f"{record.place}: an answer is not one turn of the assistant's",
            fix="write one text, or one message, in each of the two fields",
        )
    return texts[0]
