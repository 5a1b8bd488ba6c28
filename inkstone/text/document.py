"""The unit of text that every later stage keeps whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Document:
    """A text and where it came from.

    Attributes:
        text: Its characters.
        source: Path of the file (printable; odd bytes are escaped), or a name such as `<stdin>`.
        index: Its number in that file, from 1: the line of a .jsonl, .csv or .tsv, the row of a
            .parquet, the line or piece of a .txt. 0: the document is the whole file.
    """

    text: str
    source: str
    index: int = 0
