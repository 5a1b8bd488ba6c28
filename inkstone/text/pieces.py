"""How one text file becomes documents: whole, by line, by paragraph, or in pieces of a size."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from inkstone.errors import DataError
from inkstone.text.document import Document
from inkstone.text.opened import Opened, decode, numbered_lines

WHOLE_BYTES = 64 * 1024  # "auto": a larger file is cut
PIECE_BYTES = 4096  # "auto": cut at the first blank line after so much,
LONGEST_PIECE_BYTES = 4 * PIECE_BYTES  # or, where there is none, at a line's or a word's end
_READ_BYTES = 1 << 20
_END = rb"(?:\r\n?+|\n)"
_BLANK_LINE = re.compile(_END + rb"(?:[ \t]*+" + _END + rb")++")


def read_text(file: Opened) -> Iterator[Document]:
    """.txt and .md, cut as `TextConfig.split_on` says."""
    how, limit = file.config.split_on, file.config.max_document_bytes
    if how == "line":
        yield from _lines(file)
    elif how == "blank_line":
        yield from _cut(file, file.stream, 1, limit)
    else:
        head = file.stream.read(WHOLE_BYTES + 1)
        if how == "auto" and len(head) > WHOLE_BYTES:
            yield from _cut(
                file, file.stream, min(PIECE_BYTES, limit), min(LONGEST_PIECE_BYTES, limit), head
            )
            return
        data = head + file.stream.read(max(0, limit + 1 - len(head)))
        if len(data) > limit:
            raise DataError(
                f"{file.name}: longer than text.max_document_bytes ({limit:,})",
                fix='cut it with text.split_on="auto", or raise the limit',
            )
        yield Document(decode(data, file.name), file.name)


def _lines(file: Opened) -> Iterator[Document]:
    for number, line in numbered_lines(file):
        try:
            text = decode(line, file.name, number)
        except DataError as error:
            file.bad(error)
            continue
        yield Document(text.rstrip("\r\n"), file.name, number)


def _cut(
    file: Opened, stream: BinaryIO, least: int, most: int, head: bytes = b""
) -> Iterator[Document]:
    """Pieces of at least `least` bytes, each with the blank lines that end it.

    Where a piece ends does not depend on how the stream is read: there are always `most` bytes
    ahead, or the end of the file.
    """
    buffer, start, line, number, ended = head, 0, 1, 0, False
    while True:
        while not ended and len(buffer) - start <= most:
            block = stream.read(max(_READ_BYTES, min(most, 64 * _READ_BYTES)))
            ended = not block
            buffer, start = buffer[start:] + block, 0
        if start == len(buffer):
            return
        end = _end_of_piece(buffer, start, least, most, ended)
        piece = buffer[start:end]
        number += 1
        try:
            document = Document(decode(piece, file.name, line), file.name, number)
        except DataError as error:
            file.bad(error)
        else:
            yield document
        line += piece.count(b"\n")
        start = end


def _end_of_piece(buffer: bytes, start: int, least: int, most: int, ended: bool) -> int:
    farthest = min(len(buffer), start + most)
    blank = _BLANK_LINE.search(buffer, min(start + least, farthest), farthest)
    if blank:
        return blank.end()
    if ended and farthest == len(buffer):
        return farthest
    for mark in (b"\n", b" "):
        end = buffer.find(mark, start + least - 1, farthest) + 1
        if end > start:
            return end
    while farthest > start + 1 and farthest < len(buffer) and buffer[farthest] & 0xC0 == 0x80:
        farthest -= 1  # not inside a character
    return farthest
