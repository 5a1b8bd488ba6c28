"""The unit of text that every later stage keeps whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        text: Its characters.
        source: Path of the file, or a name such as `<stdin>`.
        index: Its number in that file: the line of a .jsonl, the row of a table, the piece of a
            text file; from 1.
    """

    text: str
    source: str
    index: int = 1
