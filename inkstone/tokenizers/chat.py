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
from typing import Any

from tokenizers import AddedToken

from inkstone.errors import TokenizerError
from inkstone.tokenizers.sandbox import render

SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ROLES = ("system", "user", "assistant")
MAX_TURNS = 10_000
_EDGE = 64  # characters of white space around a message that a template may see, to trim them
_OPEN, _CLOSE = "\ue000", "\ue001"  # private use: no filter of a template changes them

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def chat_ids(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    encode: Callable[[str], list[int]],
    control: Mapping[int, AddedToken],
    names: Mapping[str, str],
    add_generation_prompt: bool,
) -> list[int]:
    """Token ids of a conversation.

    The template sees the role of each message and a stand-in for its content, with the white space
    at its edges; other fields are left out. What the template does with a message's words
    themselves (searching them, splitting them) therefore has no effect.

    Args:
        template: Jinja source, as in `tokenizer_config.json`.
        messages: Objects with `role` and `content`.
        encode: Encodes text, in which nothing is a control token.
        control: The control tokens by id.
        names: Names that the template may use (`bos_token`, `eos_token`, …).
        add_generation_prompt: End with the mark of the assistant's turn.

    Raises:
        TokenizerError: A malformed message, or a template that fails or asks for too much.
    """
    check_messages(messages)
    nonce = str(secrets.randbits(64))  # digits: upper and lower case are the same
    contents: list[str] = []
    held = []
    for message in messages:
        left, core, right = _edges(message["content"])
        if core:
            mark = f"{_OPEN}{nonce}:{len(contents)}{_CLOSE}"
            contents.append(core)
        else:
            mark = ""
        held.append({"role": message["role"], "content": f"{left}{mark}{right}"})
    rendered = render(template, held, add_generation_prompt=add_generation_prompt, **names)
    parts = re.split(f"{_OPEN}{nonce}:(\\d+){_CLOSE}", rendered)
    ids: list[int] = []
    waiting, strip_next = "", False

    def text(part: str, *, strip: bool = False) -> None:
        nonlocal waiting, strip_next
        waiting += part.lstrip() if strip_next and not waiting else part
        waiting = waiting.rstrip() if strip else waiting
        strip_next = strip_next and not waiting

    def flush() -> None:
        nonlocal waiting
        if waiting:
            ids.extend(encode(waiting))
        waiting = ""

    table = {token.content: (i, token) for i, token in control.items()}
    ordered = sorted(table, key=len, reverse=True)
    literal = re.compile("|".join(map(re.escape, ordered)) or r"(?!)")
    for number, part in enumerate(parts):
        if number % 2:
            text(contents[_index(part, contents)])
            continue
        start = 0
        for match in literal.finditer(part):
            token_id, token = table[match[0]]
            text(part[start : match.start()], strip=token.lstrip)
            flush()
            ids.append(token_id)
            start, strip_next = match.end(), token.rstrip
        text(part[start:])
    flush()
    return ids


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


def _index(number: str, contents: list[str]) -> int:
    if int(number) >= len(contents):
        raise TokenizerError("the chat template wrote a stand-in of its own")
    return int(number)
