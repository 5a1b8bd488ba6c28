"""Tokens to text one at a time, never half a character."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class StreamDecoder:
    """Gives out text as soon as it is certain; the parts join to what decoding at once gives.

    Args:
        token_bytes: The bytes that a token stands for.
        strip_first_space: Drop one space before the first token (Unigram's word mark).
    """

    def __init__(
        self, token_bytes: Callable[[int], bytes], *, strip_first_space: bool = False
    ) -> None:
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = strip_first_space

    def push(self, token: int) -> str:
        """Text that became certain with this token; may be empty."""
        data = self._token_bytes(token)
        if self._strip and data:
            data, self._strip = data.removeprefix(b" "), False
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left; an unfinished character becomes U+FFFD."""
        return self._decoder.decode(b"", final=True)
