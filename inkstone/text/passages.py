"""Passages of a text: about a hundred words that stand together, and where they stand."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inkstone.text.bm25 import terms

PASSAGE_WORDS = 100
_BLANK = re.compile(r"\n[^\S\n]*\n\s*")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_WORD = re.compile(r"\S+")

Span = tuple[int, int]
"""Characters from, and up to but not including."""


def spans(text: str, words: int = PASSAGE_WORDS) -> Iterator[Span]:
    """Passages without the space around them: paragraphs, short ones together, long ones cut.

    A cut falls between sentences; a sentence that is endless is cut between words.

    Args:
        text: With "\\n" at the ends of lines; blank lines part paragraphs.
        words: Terms of a passage, at most.
    """
    held: list[Span] = []
    size = 0
    for paragraph in _between(text, _BLANK, (0, len(text))):
        if held and size >= words // 2:
            yield held[0][0], held[-1][1]
            held, size = [], 0
        for span in _sentences(text, paragraph, words):
            count = len(terms(text[slice(*span)]))
            if held and size + count > words:
                yield held[0][0], held[-1][1]
                held, size = [], 0
            held.append(span)
            size += count
    if held:
        yield held[0][0], held[-1][1]


def _sentences(text: str, paragraph: Span, words: int) -> Iterator[Span]:
    for sentence in _between(text, _SENTENCE, paragraph):
        found = [match.span() for match in _WORD.finditer(text, *sentence)]
        for start in range(0, len(found), words):
            yield found[start][0], found[min(start + words, len(found)) - 1][1]


def _between(text: str, mark: re.Pattern[str], within: Span) -> Iterator[Span]:
    """What lies between matches, without the space around it."""
    start = within[0]
    for match in (*mark.finditer(text, *within), None):
        end = within[1] if match is None else match.start()
        piece = text[start:end]
        if piece.strip():
            left = start + len(piece) - len(piece.lstrip())
            yield left, left + len(piece.strip())
        start = end if match is None else match.end()
