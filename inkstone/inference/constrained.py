"""Answers that fit a form: a JSON schema, a regular expression, or one of some texts.

Before every token the form says which ones can still lead to an answer that fits, and no other may
be chosen (Willard & Louf 2023, "Efficient Guided Generation for Large Language Models"). The form
is followed by llguidance (extra `serve`), on a budget: one that is too complex is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inkstone import registry
from inkstone.errors import UsageError
from inkstone.inference.config import MAX_FORM_CHARS, SamplingConfig

if TYPE_CHECKING:
    from inkstone.tokenizers.tokenizer import Tokenizer

FUEL = 500_000  # to begin; about 10 ms
STEP_FUEL = 200_000  # for a token
GRAMMAR_SIZE = 100_000
LEXER_STATES = 50_000


class Constraint:
    """Where one answer stands in its form.

    Args:
        matcher: llguidance's.
        n_tokens: Of the vocabulary.
    """

    def __init__(self, matcher: Any, n_tokens: int) -> None:
        self._matcher, self._n_tokens = matcher, n_tokens

    @property
    def broken(self) -> bool:
        """The form became too complex to be followed on; the answer ends here."""
        return bool(self._matcher.is_error())

    @property
    def complete(self) -> bool:
        """Nothing more can follow."""
        return bool(self._matcher.is_stopped()) and not self.broken

    def mask(self, vocab_size: int, device: torch.device) -> Tensor:
        """[V] bool, the tokens that may come next; all where it is broken."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self.broken:
            return torch.ones(vocab_size, dtype=torch.bool, device=device)
        allowed = np.unpackbits(bits, bitorder="little")[: self._n_tokens].astype(bool)
        found = np.zeros(vocab_size, bool)
        found[: self._n_tokens] = allowed[:vocab_size]
        return torch.from_numpy(found).to(device)

    def take(self, token: int) -> None:
        """This token was chosen."""
        self._matcher.consume_token(token)


def constraint_of(config: SamplingConfig, tokenizer: Tokenizer | None) -> Constraint | None:
    """The form that some settings ask for; None where they ask for none.

    Raises:
        UsageError: It is malformed or too complex, or there is no tokenizer.
        MissingExtraError: llguidance is not installed.
    """
    form = _grammar(config)
    if form is None:
        return None
    if tokenizer is None:
        raise UsageError("a form needs a tokenizer")
    if len(form) > MAX_FORM_CHARS:
        raise UsageError(f"a form has at most {MAX_FORM_CHARS:,} characters")
    ll = registry.extra("llguidance", "serve")
    limits = ll.LLParserLimits(
        initial_lexer_fuel=FUEL, step_lexer_fuel=STEP_FUEL, max_grammar_size=GRAMMAR_SIZE,
        max_lexer_states=LEXER_STATES, verbose_errors=False,
    )  # fmt: skip
    matcher = ll.LLMatcher(_vocabulary(tokenizer), form, log_level=0, limits=limits)
    if matcher.is_error():
        raise UsageError(
            f"the form is malformed or too complex: {_first_line(matcher.get_error())}"
        )
    return Constraint(matcher, tokenizer.vocab_size)


def _grammar(config: SamplingConfig) -> str | None:
    """The form as llguidance reads it."""
    if not config.constrained:
        return None
    matcher = registry.extra("llguidance", "serve").LLMatcher
    if config.regex is not None:
        return str(matcher.grammar_from_regex(config.regex))
    if config.choice:
        options = " | ".join(json.dumps(text, ensure_ascii=False) for text in config.choice)
        return str(matcher.grammar_from_lark(f"start: {options}"))
    try:
        schema = json.dumps(dict(config.json_schema or {}), allow_nan=False)
        return str(matcher.grammar_from_json_schema(schema))
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"json_schema: {_first_line(str(error))}") from error


class _Vocabulary:
    """A tokenizer as llguidance looks at it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id, self.bos_token_id = tokenizer.eos_id, tokenizer.bos_id
        special = set(tokenizer.special_ids)
        # what no text is made of is marked, so that it is never a part of an answer
        self.tokens = [
            b"\xff" + str(i).encode() if i in special else tokenizer.token_bytes(i)
            for i in range(tokenizer.vocab_size)
        ]
        self.special_token_ids = sorted(special)
        self._tokenizer = tokenizer

    def __call__(self, text: bytes | str) -> Sequence[int]:
        given = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._tokenizer.encode(given)


@functools.lru_cache(maxsize=16)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    ll = registry.extra("llguidance", "serve")
    return ll.LLTokenizer(ll.TokenizerWrapper(_Vocabulary(tokenizer)))


def _first_line(text: str) -> str:
    line = text.strip().splitlines()[0] if text.strip() else "no reason was given"
    return line if len(line) <= 200 else line[:200] + "…"
