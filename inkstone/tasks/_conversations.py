"""Conversations to learn from: out of the shapes that tables have, and into rows of ids."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from inkstone.errors import DataError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks._base import Row
from inkstone.tasks._turns import ASSISTANT, SOURCE, SYSTEM, USER, turns_of
from inkstone.text.normalize import normalize
from inkstone.text.rows import listed, text_of
from inkstone.text.table import Record
from inkstone.tokenizers.chat import ChatFormat

CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns",
                 "utterances")  # fmt: skip
ALPACA = ("instruction", "input", "output")  # Taori et al. 2023; the input may be empty
PAIR = ("prompt", "completion")
FIELDS = (*CONVERSATIONS, *ALPACA, *PAIR, "system")
PACKED_AT_ONCE = 512  # conversations among which rows are filled up

Turns = tuple[tuple[str, ...], tuple[str, ...]]
"""Who speaks, and what is said."""


@dataclass(frozen=True, slots=True)
class Taught:
    """What a row holds, before it is shifted.

    Attributes:
        ids: Of the conversation.
        learned: For each id whether the model has to say it.
        cut: Ids at the end that did not fit.
    """

    ids: list[int]
    learned: list[bool]
    cut: int = 0


def turns_in(record: Record, field: str | None, *, answered: bool = True) -> Turns:
    """The conversation in a record of any known shape, recognised by its fields.

    Args:
        record: `messages` (or a name like it) of {role, content} or {from, value}; Alpaca's
            `instruction`, `input`, `output`; or `prompt`, `completion`. A `system` text may stand
            beside each.
        field: The field of the messages; None for the first shape that is there.
        answered: Whether the fields of an answer are read; `instruction` or `prompt` is enough
            where they are not.

    Raises:
        DataError: It has no such shape, or a part of it is malformed.
    """
    values, place = record.values, record.place
    names = CONVERSATIONS if field is None else (field,)
    found = next((name for name in names if values.get(name) is not None), None)
    if found is not None:
        roles, texts = turns_of(values[found], place, found)
    elif field is None and not answered and values.get(ALPACA[0]):
        roles, texts = turns_of(spoken(record, ALPACA[:2]), place, ALPACA[0])
    elif field is None and not answered and values.get(PAIR[0]):
        roles, texts = prompt_in(record, PAIR[0])
    elif field is None and ALPACA[0] in values and ALPACA[2] in values:
        both = [spoken(record, ALPACA[:2]), text_in(record, ALPACA[2])]
        roles, texts = turns_of(both, place, ALPACA[0])
    elif field is None and all(name in values for name in PAIR):
        roles, texts = with_answer(prompt_in(record, PAIR[0]), values[PAIR[1]], place, PAIR[1])
    else:
        raise no_conversation(record, "instruction, output; or prompt, completion")
    return with_system(record, (roles, texts))


def spoken(record: Record, fields: Sequence[str]) -> str:
    """The texts of some fields as one turn, a line end between them."""
    return "\n".join(text_in(record, name) for name in fields if record.values.get(name))


def prompt_in(record: Record, field: str) -> Turns:
    """What is said before an answer: a text of the user's, or messages."""
    value = record.values[field]
    return turns_of(value, record.place, field, answered=isinstance(value, str))


def with_answer(before: Turns, value: Any, place: str, field: str) -> Turns:
    """A conversation and one more answer: a text, a message, or a list of one or more messages."""
    if isinstance(value, str):
        value = {"role": ASSISTANT, "content": value}
    roles, texts = turns_of(value if isinstance(value, list) else [value], place, field)
    return (*before[0], *roles), (*before[1], *texts)


def with_system(record: Record, turns: Turns) -> Turns:
    """The turns, behind the text of the field `system` where the record has one.

    Raises:
        DataError: A role that chat templates do not know.
    """
    roles, texts = turns
    if SOURCE in roles:
        raise DataError(
            f"{record.place}: a turn has the role {SOURCE!r}, which chat templates do not know",
            fix="train on it with task.name=dialogue, or make it a part of the user's turn",
        )
    if record.values.get("system") and SYSTEM not in roles:
        roles, texts = (SYSTEM, *roles), (text_in(record, "system"), *texts)
    return roles, texts


def text_in(record: Record, field: str) -> str:
    """The text of a field, normalised."""
    return normalize(text_of(record.values, field, record.place, option="a field name")).strip()


def no_conversation(record: Record, others: str) -> DataError:
    """Says which fields a record has, and which shapes are known."""
    return DataError(
        f"{record.place}: it has the fields {listed(record.names)}, and no conversation",
        fix='write {"messages": [{"role": "user", "content": …}, …]} on each line, or '
        f"the fields {others}; or name the field of the messages: task.messages_field",
    )


def messages_of(roles: Sequence[str], texts: Sequence[str]) -> list[dict[str, str]]:
    """Turns as chat templates take them."""
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]


def taught(messages: Sequence[Mapping[str, str]], chat: ChatFormat, most: int) -> Iterator[Taught]:
    """A conversation as rows of at most `most` ids, each answer in one of them.

    One that is too long is cut where the user speaks; the system's message stands before each part.
    What is too long by itself loses its end.
    """
    system = [m for m in messages[:1] if m["role"] == SYSTEM]
    first = len(system)
    starts = [i for i, m in enumerate(messages) if i > first and m["role"] == USER]
    places = [first, *starts, len(messages)]

    def part(a: int, b: int) -> list[Mapping[str, str]]:
        return [*system, *messages[places[a] : places[b]]]

    def fits(a: int, b: int) -> bool:
        return len(chat.write(part(a, b), add_generation_prompt=False).ids) <= most

    done, last = 0, len(places) - 1
    while done < last:
        end, whole = last, chat.teach(part(done, last))
        if len(whole.ids) > most and last > done + 1:
            ends = range(done + 1, last)
            end = done + max(1, bisect.bisect_left(ends, True, key=lambda b: not fits(done, b)))
            whole = chat.teach(part(done, end))
        yield Taught(whole.ids[:most], whole.learned()[:most], max(0, len(whole.ids) - most))
        done = end


def shifted(row: Taught) -> Row:
    """What is read, and what follows each id where that is learned; one segment."""
    targets = [
        i if wanted else IGNORE_INDEX for i, wanted in zip(row.ids, row.learned, strict=True)
    ]
    return {"ids": row.ids[:-1], "targets": targets[1:], "segments": [0] * (len(row.ids) - 1)}


def packed(rows: Iterable[Row], most: int) -> Iterator[Row]:
    """Several conversations in a row of at most `most` ids, each a segment of its own.

    Best fit, the longest first, among so many conversations as are held at once (Krell et al. 2021,
    "Efficient Sequence Packing without Cross-contamination").
    """
    iterator = iter(rows)
    while some := list(islice(iterator, PACKED_AT_ONCE)):
        free: list[tuple[int, int]] = []  # (room that is left, number of the bin), ascending
        bins: list[list[Row]] = []
        for row in sorted(some, key=lambda row: -len(row["ids"])):
            size = len(row["ids"])
            place = bisect.bisect_left(free, (size, 0))
            room, number = free.pop(place) if place < len(free) else (most, len(bins))
            if number == len(bins):
                bins.append([])
            bins[number].append(row)
            bisect.insort(free, (room - size, number))
        yield from map(_joined, bins)


def _joined(rows: Sequence[Row]) -> Row:
    return {
        "ids": [i for row in rows for i in row["ids"]],
        "targets": [i for row in rows for i in row["targets"]],
        "segments": [number for number, row in enumerate(rows) for _ in row["ids"]],
    }
