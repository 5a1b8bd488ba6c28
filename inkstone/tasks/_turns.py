"""Turns of a conversation: out of the shapes that records have, and into framed ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from inkstone.errors import DataError, TokenizerError
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value
from inkstone.tokenizers import chat
from inkstone.tokenizers.tokenizer import Tokenizer

USER, ASSISTANT, SYSTEM, SOURCE = "user", "assistant", "system", "source"
SPECIALS = ("<|source|>", "<|rate|>", "<|yes|>", "<|no|>")
SHAPES = (("role", "content"), ("from", "value"), ("speaker", "utterance"), ("speaker", "text"))
SPEAKERS = {
    "user": USER, "human": USER, "customer": USER, "a": USER, "assistant": ASSISTANT,
    "gpt": ASSISTANT, "bot": ASSISTANT, "model": ASSISTANT, "agent": ASSISTANT, "b": ASSISTANT,
    "system": SYSTEM, "source": SOURCE,
}  # fmt: skip
RATINGS = {"1": True, "0": False, "true": True, "false": False, "yes": True, "no": False}


class Frame:
    """The control tokens around turns and ratings, as `tokenizers.chat.TEMPLATE` writes turns.

    Args:
        tokenizer: Trained for dialogue.

    Attributes:
        roles: The mark of each role.
        end: Ends a turn.
        rate: Stands before the name of a quality.
        yes, no: Ratings.

    Raises:
        TokenizerError: One of the marks is missing, or the chat template is another.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        if tokenizer.chat_template != chat.TEMPLATE:
            raise TokenizerError(
                "the tokenizer has a chat template of its own, which has no place for ratings",
                fix="leave out tokenizer.chat_template, or begin with a model that was trained "
                "with task.name=dialogue",
            )
        roles = {role: f"<|{role}|>" for role in (SYSTEM, USER, ASSISTANT, SOURCE)}
        self.roles = {role: self._id(mark) for role, mark in roles.items()}
        self.end = self._id("<|end|>")
        self.rate, self.yes, self.no = (self._id(mark) for mark in SPECIALS[1:])
        self._asked: dict[str, list[int]] = {}

    def turn(self, role: str, ids: Sequence[int]) -> list[int]:
        """One turn of a conversation."""
        return [self.roles[role], *ids, self.end]

    def ask(self, attribute: str) -> list[int]:
        """What follows a response whose rating comes next."""
        if attribute not in self._asked:
            self._asked[attribute] = [self.rate, *self.tokenizer.encode(attribute)]
        return self._asked[attribute]

    def good(self, logits: Tensor) -> float:
        """P(yes) against no, from the scores [V] of the next token."""
        return float((logits[self.yes] - logits[self.no]).double().sigmoid())

    def _id(self, mark: str) -> int:
        found = self.tokenizer.backend.token_to_id(mark)
        if found is None or found not in self.tokenizer.special_ids:
            raise TokenizerError(
                f"the tokenizer has no control token {mark}",
                fix="begin with a model that was trained with task.name=dialogue",
            )
        return int(found)


def turns_of(
    value: Any, place: str, field: str, *, answered: bool = False
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Roles and texts of a conversation; turns without text are left out.

    Args:
        value: A list of {"role", "content"} or a shape like it, a list of texts that two speakers
            say in turn, or one text.
        place: Of the record, for messages.
        field: Likewise.
        answered: The assistant speaks next, so the last of several texts is the user's; else the
            first is.

    Raises:
        DataError: It is something else, or nothing is said.
    """
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list):
        raise DataError(
            f"{place}: field {field!r} holds {kind_of_value(value)}, not a conversation",
            fix='write a list of {"role": "user", "content": "…"}, or of texts',
        )
    roles: list[str] = []
    texts: list[str] = []
    for number, turn in enumerate(value, 1):
        speaker = (len(value) - number) % 2 if answered else (number - 1) % 2
        role, text = _turn(turn, (USER, ASSISTANT)[speaker], f"{place}: turn {number} of {field!r}")
        text = normalize(text).strip()
        if text:
            roles.append(role)
            texts.append(text)
    if not texts:
        raise DataError(f"{place}: nothing is said in {field!r}", fix="remove the line")
    return tuple(roles), tuple(texts)


def _turn(turn: Any, speaker: str, where: str) -> tuple[str, str]:
    if isinstance(turn, str):
        return speaker, turn
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {kind_of_value(turn)}, neither a text nor an object")
    shape = next((s for s in SHAPES if s[0] in turn and s[1] in turn), None)
    if shape is None:
        raise DataError(f"{where} has no speaker and text", fix='write {"role": …, "content": …}')
    name, text = turn[shape[0]], turn[shape[1]]
    if not isinstance(text, str):
        raise DataError(f"{where}: {shape[1]} is {kind_of_value(text)}, not text")
    role = SPEAKERS.get(str(name).casefold())
    if role is None:
        known = ", ".join(dict.fromkeys(SPEAKERS.values()))
        raise DataError(f"{where}: unknown speaker {str(name)[:40]!r}", fix=f"known: {known}")
    if shape[0] == "speaker" and role == SYSTEM:  # of two speakers, the machine
        role = ASSISTANT
    return role, text


def rating_of(value: Any, place: str, field: str) -> bool:
    """Whether a response has a quality.

    Raises:
        DataError: It is neither 1 nor 0.
    """
    if isinstance(value, bool):
        return value
    text = f"{value:g}" if isinstance(value, float | int) else str(value).strip().casefold()
    if text not in RATINGS:
        what = str(value)[:40] if value is not None else "nothing"
        raise DataError(
            f"{place}: field {field!r} holds {what!r}, not a rating", fix="write 1 or 0 there"
        )
    return RATINGS[text]
