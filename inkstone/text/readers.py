"""Readers: one function a format, from bytes to documents.

To add one, write the function, enter it in `READERS` under its suffix, and the suffix in
`files.KINDS`. A reader yields documents, tells `Opened.bad` of a bad record and goes on, and raises
`DataError` where it cannot go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from inkstone.errors import DataError
from inkstone.text.config import TextConfig
from inkstone.text.document import Document
from inkstone.text.files import STDIN, Data, find_files, kind_of
from inkstone.text.log import ReadLog
from inkstone.text.markup import read_html
from inkstone.text.opened import Opened
from inkstone.text.parquet import read_parquet
from inkstone.text.pieces import read_text
from inkstone.text.rows import read_csv, read_jsonl, read_tsv
from inkstone.text.streams import display, open_bytes, utf8

__all__ = ["READERS", "find_files", "read", "read_files"]

Reader = Callable[[Opened], Iterator[Document]]
READERS: dict[str, Reader] = {
    ".txt": read_text,
    ".md": read_text,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".html": read_html,
    ".htm": read_html,
    ".parquet": read_parquet,
}
BINARY = frozenset({".parquet"})


def read(data: Data, *, config: TextConfig, log: ReadLog | None = None) -> Iterator[Document]:
    """All documents of `data`, in the order of `find_files`, one at a time.

    Args:
        data: A file, a folder, a pattern, "-" for stdin, or a list of those.
        config: Limits and policies.
        log: Under `on_error="skip"`, counts what was skipped.

    Raises:
        DataError: A file is damaged or a record is bad; names it, with the line, and the mend.
        MissingExtraError: A .parquet without the extra `data`.
    """
    log = log or ReadLog(config)
    yield from read_files(find_files(data, log=log), config=config, log=log)


def read_files(paths: Iterable[Path], *, config: TextConfig, log: ReadLog) -> Iterator[Document]:
    """All documents of some files; as `read`."""
    for path in paths:
        try:
            yield from _read_file(path, config, log)
        except DataError as error:
            log.bad(error, "damaged files")
        finally:
            log.finish_file()


def _read_file(path: Path, config: TextConfig, log: ReadLog) -> Iterator[Document]:
    name, kind, limit = display(path), kind_of(path), config.max_document_bytes
    with open_bytes(path, config) as (stream, raw):
        log.current = None if path == STDIN else raw
        text = stream if kind in BINARY else utf8(stream, name)
        for document in READERS.get(kind, read_text)(Opened(text, name, config, log.bad)):
            if len(document.text) * 4 > limit and len(document.text.encode("utf-8")) > limit:
                log.bad(_too_long(document, limit))
            else:
                yield document


def _too_long(document: Document, limit: int) -> DataError:
    place = f", {document.index}" if document.index else ""
    return DataError(
        f"{document.source}{place}: longer than text.max_document_bytes ({limit:,})",
        fix="cut the document, or raise the limit",
    )
