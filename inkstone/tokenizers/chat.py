"""Conversations to token ids through a chat template.

The text of a message never becomes a control token: the template is rendered with placeholders in
its place; control tokens are then looked for in what the template itself wrote, and everything
between two of them (markup and messages together, as a tokenizer meets them) is encoded with
control tokens off.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from tokenizers import AddedToken

from inkstone.errors import TokenizerError
from inkstone.tokenizers.sandbox import render

SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
SYSTEM, USER, ASSISTANT = ROLES = ("system", "user", "assistant")
MAX_TURNS = 10_000
MAX_ASKED = 64  # last answers of a conversation whose prompts are written too
_EDGE = 64  # characters of white space around a message that a template may see, to trim them
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no filter of a template changes them
_STAND_IN = re.compile(f"{_OPEN}(\\d{{1,20}}):(\\d{{1,9}}){_CLOSE}", re.ASCII)

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Transcript:
    """A conversation in ids.

    Attributes:
        ids: Of the whole, markup and messages.
        answers: [start, end) of the ids of each answer of the assistant, in order. The last of
            them is the control token that ends the turn.
        closed: Whether a control token ends every answer.
    """

    ids: list[int]
    answers: list[tuple[int, int]]
    closed: bool

    def learned(self) -> list[bool]:
        """For each id whether the assistant has to say it."""
        wanted = [False] * len(self.ids)
        for start, end in self.answers:
            wanted[start:end] = [True] * (end - start)
        return wanted


@dataclass(frozen=True)
class ChatFormat:
    """A chat template with the tokenizer that it was written for.

    Attributes:
        template: Jinja source, as in `tokenizer_config.json`.
        encode: Encodes text, in which nothing is a control token.
        control: The control tokens by id.
        names: Names that the template may use (`bos_token`, `eos_token`, …).
    """

    template: str
    encode: Callable[[str], list[int]]
    control: Mapping[int, AddedToken]
    names: Mapping[str, str]

    def write(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool
    ) -> Transcript:
        """Ids of a conversation, as a model is given it.

        The template sees the role of each message and a stand-in for its content, with the white
        space at its edges; other fields are left out. What the template does with a message's words
        themselves (searching them, splitting them) therefore has no effect.

        Args:
            messages: Objects with `role` and `content`.
            add_generation_prompt: End with the mark of the assistant's turn.

        Raises:
            TokenizerError: A malformed message, or a template that fails or asks for too much.
        """
        check_messages(messages)
        nonce = str(secrets.randbits(64))  # digits: upper and lower case are the same
        spoken: list[tuple[str, bool]] = []
        held = []
        for message in messages:
            left, core, right = _edges(message["content"])
            mark = ""
            if core:
                mark = f"{_OPEN}{nonce}:{len(spoken)}{_CLOSE}"
                spoken.append((core, message["role"] == ASSISTANT))
            held.append({"role": message["role"], "content": f"{left}{mark}{right}"})
        rendered = render(
            self.template, held, add_generation_prompt=add_generation_prompt, **self.names
        )
        pen, done = _Pen(self.encode), 0
        for match in _STAND_IN.finditer(rendered):
            if match[1] != nonce:
                continue
            self._markup(pen, rendered[done : match.start()])
            core, answer = spoken[_index(match[2], len(spoken))]
            pen.say(core, answer=answer)
            done = match.end()
        self._markup(pen, rendered[done:])
        return pen.transcript()

    def _markup(self, pen: _Pen, text: str) -> None:
        """What the template itself wrote, and the control tokens in it."""
        start = 0
        for match in self._literal.finditer(text):
            pen.write(text[start : match.start()])
            pen.control(*self._table[match[0]])
            start = match.end()
        pen.write(text[start:])

    @cached_property
    def _table(self) -> dict[str, tuple[int, AddedToken]]:
        return {token.content: (i, token) for i, token in self.control.items()}

    @cached_property
    def _literal(self) -> re.Pattern[str]:
        ordered = sorted(self._table, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")

    def teach(self, messages: Sequence[Mapping[str, Any]]) -> Transcript:
        """Ids of a finished conversation, for training: an answer begins where its prompt ends.

        A template may write something between the mark of the assistant's turn and the answer (an
        empty block of thoughts, a line end): no prompt holds it, so the model has to say it.

        Raises:
            TokenizerError: As in `write`; or the template ends an answer with no control token.
        """
        whole = self.write(messages, add_generation_prompt=False)
        if not whole.closed:
            raise TokenizerError(
                "the chat template ends an answer with no control token, so that no model could "
                "learn from it where to stop",
                fix="write {{ eos_token }} behind the assistant's content in chat_template",
            )
        turns = [
            i for i, m in enumerate(messages) if m["role"] == ASSISTANT and m["content"].strip()
        ]
        if len(turns) != len(whole.answers):
            return whole
        answers = list(whole.answers)
        for number, turn in list(enumerate(turns))[-MAX_ASKED:]:
            if any(m["role"] == USER for m in messages[:turn]):
                prompt = self.write(messages[:turn], add_generation_prompt=True).ids
                start, end = answers[number]
                if len(prompt) < start and whole.ids[: len(prompt)] == prompt:
                    answers[number] = len(prompt), end
        return replace(whole, answers=answers)


class _Pen:
    """Writes a conversation piece by piece; text between two control tokens is encoded at once."""

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        self.ids: list[int] = []
        self.answers: list[tuple[int, int]] = []
        self.closed = True
        self._waiting, self._strip_next = "", False
        self._before: str | None = None  # of the text that waits, what stands before an answer

    def write(self, part: str) -> None:
        self._waiting += part.lstrip() if self._strip_next and not self._waiting else part
        self._strip_next = self._strip_next and not self._waiting

    def say(self, text: str, *, answer: bool) -> None:
        self.closed = self.closed and self._before is None
        self._before = self._waiting if answer else None
        self.write(text)

    def control(self, token_id: int, token: AddedToken) -> None:
        if token.lstrip:
            self._waiting = self._waiting.rstrip()
        start = self._flush()
        self.ids.append(token_id)
        if start is not None:
            self.answers.append((start, len(self.ids)))
        self._strip_next = token.rstrip

    def transcript(self) -> Transcript:
        self.closed = self._flush() is None and self.closed
        return Transcript(self.ids, self.answers, self.closed)

    def _flush(self) -> int | None:
        """Encode what waits; gives where the answer in it begins, if there is one.

        A token that holds the last of the markup and the first of the answer belongs to the answer.
        """
        encoded = self.encode(self._waiting) if self._waiting else []
        start = None
        if self._before is not None:
            before = self.encode(self._before) if self._before else []
            pairs = zip(before, encoded, strict=False)
            start = len(self.ids) + sum(
                1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)
            )
        self.ids += encoded
        self._waiting, self._before = "", None
        return start


def check_messages(messages: Any) -> None:
    """Raises:
    TokenizerError: Not a list of {"role", "content"} with known roles and text.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TokenizerError(
            "a conversation is a list of at least one message",
            fix='such as [{"role": "user", "content": "Hello"}]',
        )
    if len(messages) > MAX_TURNS:
        raise TokenizerError(
            f"a conversation of {len(messages):,} messages is too long",
            fix=f"keep the last {MAX_TURNS:,} or fewer",
        )
    for number, message in enumerate(messages, start=1):
        where = f"message {number}"
        if not isinstance(message, Mapping) or {"role", "content"} - message.keys():
            raise TokenizerError(f'{where}: needs "role" and "content"')
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise TokenizerError(
                f"{where}: unknown role {str(role)[:40]!r}", fix=f"known: {', '.join(ROLES)}"
            )
        if not isinstance(content, str):
            raise TokenizerError(f"{where}: content is {type(content).__name__}, not text")


def _edges(content: str) -> tuple[str, str, str]:
    """White space before, the rest, white space after."""
    core = content.strip()
    start = content.find(core)
    left, right = content[:start], content[start + len(core) :]
    if len(left) > _EDGE or len(right) > _EDGE:
        return "", content, ""
    return left, core, right


def _index(number: str, count: int) -> int:
    if int(number) >= count:
        raise TokenizerError("the chat template wrote a stand-in of its own")
    return int(number)
