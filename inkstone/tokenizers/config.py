"""Settings of a tokenizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from inkstone.config import Section

Kind = Literal["bpe", "wordpiece", "unigram", "char", "byte", "word"]


class TokenizerConfig(Section):
    """Which tokenizer to train.

    Attributes:
        kind: The algorithm. "bpe" is byte-level; "byte" is one token a byte.
        vocab_size: Tokens, special ones included; None lets planning choose. A small text gives
            fewer. Ignored by "byte".
        min_frequency: A pair, piece or word must be seen this often.
        lowercase: Fold case ("wordpiece" only).
        pattern: Pre-tokenisation of "bpe": "gpt2" (Radford et al. 2019) or "modern", which keeps
            numbers to three digits and lets a word take one punctuation mark before it.
        chat_template: Jinja source; None takes the one of `tokenizers.chat`.
    """

    kind: Kind = "bpe"
    vocab_size: int | None = Field(None, ge=32, le=2**22)
    min_frequency: int = Field(2, ge=1)
    lowercase: bool = False
    pattern: Literal["modern", "gpt2"] = "modern"
    chat_template: str | None = Field(None, max_length=2**16)
