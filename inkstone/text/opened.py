"""What a reader is given, and what all readers share: decoding and bounded lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from inkstone.errors import DataError
from inkstone.text.config import TextConfig

_MAGIC = (
    (b"\x1f\x8b", "gzip: add .gz to its name"),
    (b"\x28\xb5\x2f\xfd", "zstd: add .zst to its name"),
    (b"PK\x03\x04", "a zip archive (or an office document): unpack it"),
    (b"%PDF", "a PDF: convert it with pdftotext"),
    (b"PAR1", "parquet: name it .parquet"),
)


@dataclass(slots=True)
class Opened:
    """A file that is open for a reader.

    Attributes:
        stream: Its bytes, decompressed; UTF-8 without a byte-order mark unless the format is
            binary.
        name: For messages and `Document.source`.
        config: Limits and policies.
        bad: Told of a bad record: raises the error, or counts it so that the reader goes on.
    """

    stream: BinaryIO
    name: str
    config: TextConfig
    bad: Callable[[DataError], None]


def decode(data: bytes, name: str, line: int = 1) -> str:
    """Strict UTF-8.

    Args:
        data: Bytes that begin at the start of a line.
        name: Of the file.
        line: Number of the first line of `data`.

    Raises:
        DataError: It is something else; says in which line.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        for magic, what in _MAGIC:
            if line == 1 and data.startswith(magic):
                raise DataError(f"{name} is no text", fix=f"it looks like {what}") from None
        raise DataError(
            f"{name}, line {line}: byte 0x{data[error.start]:02x} is not valid UTF-8",
            fix="convert the file, for example: iconv -f LATIN1 -t UTF-8 FILE > FILE.utf8.txt; or "
            'skip it with text.on_error="skip"',
        ) from None


def numbered_lines(file: Opened) -> Iterator[tuple[int, bytes]]:
    """Lines with their ends, none longer than a document may be, numbered from 1.

    Raises:
        DataError: A line is longer; no more of it than the limit was read.
    """
    limit, number = file.config.max_document_bytes, 0
    readline = file.stream.readline
    while line := readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataError(
                f"{file.name}, line {number}: longer than text.max_document_bytes ({limit:,})",
                fix="break the line, or raise the limit",
            )
        yield number, line
