"""The sentences of a text, English or Chinese."""

from __future__ import annotations

import re

# Behind a mark that ends a sentence, or a line; not behind an initial or such a short word.
_BREAK = re.compile(
    r"(?<=[.!?…])(?<!\b[^\W\d_]\.)(?<!\b(?:al|cf|vs|Dr|Eq|Mr|Ms)\.)(?<!\b(?:etc|Fig|Mrs)\.)"
    r"[\"'”’)\]]{0,2}\s++|(?<=[。！？])(?![。！？])[”’」』）]{0,2}\s*+|\n\s*+"
)
UNSPACED = tuple("。！？”’」』）")  # behind them the next sentence begins without a space


def split(text: str) -> tuple[str, ...]:
    """The sentences of a text, each with the white space behind it; at least one."""
    ends = [match.end() for match in _BREAK.finditer(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True)]
    return tuple(piece for piece in pieces if piece.strip()) or (text,)
