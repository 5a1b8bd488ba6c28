"""Conversations to token ids through a sandboxed Jinja template.

The text of a message never becomes a control token: the template is rendered with placeholders in
its place, the template's own text is encoded with special tokens on, the messages with them off.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import jinja2.sandbox

from inkstone.errors import TokenizerError

SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
ROLES = ("system", "user", "assistant")
MAX_TURNS = 10_000
MAX_RENDERED = 2**20  # characters of markup; the messages themselves do not count

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def chat_ids(
    template: str,
    messages: Sequence[dict[str, str]],
    *,
    encode_markup: Callable[[str], list[int]],
    encode_text: Callable[[str], list[int]],
    special_tokens: dict[str, str],
    add_generation_prompt: bool,
) -> list[int]:
    """Token ids of a conversation.

    Args:
        template: Jinja source, as in `tokenizer_config.json`.
        messages: Objects with `role` and `content`.
        encode_markup: Encodes the template's own text, control tokens included.
        encode_text: Encodes what people wrote, in which nothing is a control token.
        special_tokens: Names that the template may use (`bos_token`, `eos_token`).
        add_generation_prompt: End with the mark of the assistant's turn.

    Raises:
        TokenizerError: A malformed message, or a template that fails or asks for too much.
    """
    check_messages(messages)
    nonce = secrets.token_hex(8)
    held = [{**m, "content": f"\x00{nonce}:{i}\x00"} for i, m in enumerate(messages)]
    try:
        rendered = (
            _environment()
            .from_string(template)
            .render(messages=held, add_generation_prompt=add_generation_prompt, **special_tokens)
        )
    except (jinja2.TemplateError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise TokenizerError(
            f"the chat template failed: {error}", fix="mend chat_template, or use another model"
        ) from error
    if len(rendered) > MAX_RENDERED + 40 * len(messages):
        raise TokenizerError("the chat template writes too much")
    ids: list[int] = []
    for number, part in enumerate(re.split(f"\x00{nonce}:(\\d+)\x00", rendered)):
        if number % 2:
            ids += encode_text(messages[int(part)]["content"])
        elif part:
            ids += encode_markup(part)
    return ids


def check_messages(messages: Any) -> None:
    """Raises:
    TokenizerError: Not a list of {"role", "content"} with known roles and text.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TokenizerError("a conversation is a list of at least one message")
    if len(messages) > MAX_TURNS:
        raise TokenizerError(f"a conversation of {len(messages):,} messages is too long")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or {"role", "content"} - message.keys():
            raise TokenizerError(f'message {number}: needs "role" and "content"')
        if message["role"] not in ROLES:
            raise TokenizerError(
                f"message {number}: unknown role {message['role']!r}", fix=f"known: {ROLES}"
            )
        if not isinstance(message["content"], str):
            raise TokenizerError(f"message {number}: content is not text")


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """No attribute of Python's own, short ranges, no giant strings."""

    intercepted_binops = frozenset(["*", "**", "+"])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise jinja2.TemplateError("** is not allowed in a chat template")
        if operator == "*" and not (isinstance(left, int) and isinstance(right, int)):
            raise jinja2.TemplateError("only numbers may be multiplied in a chat template")
        value = super().call_binop(context, operator, left, right)
        if isinstance(value, (str, list)) and len(value) > MAX_RENDERED:
            raise jinja2.TemplateError("the chat template writes too much")
        return value


class _Budget:
    """Steps that one rendering may take."""

    def __init__(self) -> None:
        self.left = 200_000

    def range(self, *bounds: int) -> range:
        steps = range(*bounds)
        self.left -= len(steps)
        if self.left < 0:
            raise jinja2.TemplateError("the chat template loops too long")
        return steps


def _environment() -> _Sandbox:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(str(message)[:200])

    environment.globals = {"range": _Budget().range, "raise_exception": raise_exception}
    for risky in ("center", "format", "indent", "xmlattr", "pprint", "wordwrap", "filesizeformat"):
        environment.filters.pop(risky, None)
    return environment
