"""Where words begin and sentences end among ids, read off the bytes that each token adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.tokenizers.tokenizer import Tokenizer

Flags = npt.NDArray[np.bool_]
IDEOGRAPHS = range(0xE3, 0xEA)  # first bytes of U+3000 … U+9FFF: each character is a word
STOPS = (".", "!", "?", "。", "！", "？")
CLOSING = "\"'”’)]»」』"


class Boundaries:
    """Tables over a vocabulary.

    A token goes on with the word of the token before it when both are letters, digits or inner
    bytes of a character where they meet: "##ing" of WordPiece, what has no Ġ before it in a
    byte-level vocabulary, no ▁ in SentencePiece's.

    Attributes:
        control: [V], which tokens are control tokens.
        words: Ids of all others.
        stops: [V], which tokens end a sentence.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        size = tokenizer.vocab_size
        self.control = np.zeros(size, bool)
        self.control[sorted(tokenizer.special_ids)] = True
        self.words = np.flatnonzero(~self.control)
        data = [b"" if self.control[i] else tokenizer.token_bytes(i) for i in range(size)]
        self._opens = np.array([bool(x) and _in_word(x[0]) for x in data])
        self._ideograph = np.array([bool(x) and x[0] in IDEOGRAPHS for x in data])
        self._leads = np.array([bool(x) and _in_word(x[-1]) for x in data])
        texts = (x.decode("utf-8", "ignore").rstrip().rstrip(CLOSING) for x in data)
        self.stops = np.array([text.endswith(STOPS) for text in texts])

    def word_starts(self, ids: npt.NDArray[Any]) -> Flags:
        """[T] → [T]: which tokens begin a word; each control token and each mark is one."""
        goes_on = self._opens[ids] & ~self._ideograph[ids]
        goes_on[1:] &= self._leads[ids[:-1]]
        goes_on[:1] = False
        flags: Flags = ~goes_on
        return flags


def _in_word(byte: int) -> bool:
    return byte >= 0x80 or chr(byte).isalnum()
