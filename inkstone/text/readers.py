"""Readers: one function a format, from bytes to documents.

To add one, write the function and enter it in `READERS` under its suffix.
"""

from __future__ import annotations

import csv
import glob
import html.parser
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from inkstone import registry
from inkstone.errors import DataError, MissingExtraError
from inkstone.text.config import TextConfig
from inkstone.text.document import Document
from inkstone.text.streams import open_bytes

COMPRESSED = (".gz", ".zst")
AUTO_SPLIT_BYTES = 64 * 1024  # a larger text file becomes several documents under "auto"
AUTO_PIECE_BYTES = 4096
Reader = Callable[[BinaryIO, str, TextConfig], Iterator[Document]]
Source = str | Path | Sequence[str | Path]


def find_files(data: Source) -> list[Path]:
    """All readable files of a file, a folder (recursive), a glob, or a list of those; sorted.

    Symbolic links to files are followed, links to folders are not: no loop and no escape.

    Raises:
        DataError: Nothing is there, or nothing in it is of a known kind.
    """
    if not isinstance(data, (str, Path)):
        return [file for part in data for file in find_files(part)]
    if str(data) == "-":
        return [Path("-")]
    path = Path(data)
    if path.is_dir():
        found = sorted(
            Path(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if _kind(Path(name)) in READERS and not name.startswith(".")
        )
        if not found:
            raise DataError(
                f"no file under {path} is of a known kind",
                fix=f"known: {', '.join(sorted(READERS))}, plain or .gz or .zst",
            )
        return found
    if path.exists():
        if _kind(path) not in READERS:
            raise DataError(
                f"{path}: unknown kind of file {_kind(path)!r}",
                fix=f"known: {', '.join(sorted(READERS))}, plain or .gz or .zst",
            )
        return [path]
    if glob.has_magic(str(data)):
        matches = [Path(p) for p in sorted(glob.glob(str(data), recursive=True))]
        files = [p for p in matches if p.is_file() and _kind(p) in READERS]
        if files:
            return files
        raise DataError(f"no file matches {data!s}", fix="check the pattern (quote it in a shell)")
    raise DataError(f"{path} does not exist", fix="check the path")


def read(
    data: Source, config: TextConfig, *, skipped: list[str] | None = None
) -> Iterator[Document]:
    """All documents of `data`, in the order of `find_files`.

    Args:
        data: File, folder, glob, "-" for stdin, or a list of those.
        config: Limits and policies.
        skipped: Under `on_error="skip"`, gets one sentence a damaged file or row.

    Raises:
        DataError: A file or row is damaged; names it, with the line.
    """
    for path in find_files(data):
        name = "<stdin>" if str(path) == "-" else os.fsdecode(os.fsencode(path))
        name = name.encode("utf-8", "replace").decode()
        try:
            with open_bytes(path, config) as stream:
                for document in _guarded(
                    READERS[_kind(path)](stream, name, config), skipped, config
                ):
                    if len(document.text) > config.max_document_bytes:
                        raise DataError(
                            f"{name}, {document.index}: a document of {len(document.text):,} "
                            "characters is longer than text.max_document_bytes",
                            fix="raise the limit, or split the document",
                        )
                    yield document
        except DataError as error:
            if config.on_error == "stop" or skipped is None:
                raise
            skipped.append(error.message)


def _guarded(
    documents: Iterator[Document], skipped: list[str] | None, config: TextConfig
) -> Iterator[Document]:
    """Readers yield a DataError in place of a bad row when rows can be skipped."""
    for document in documents:
        if isinstance(document, DataError):
            if config.on_error == "stop" or skipped is None:
                raise document
            skipped.append(document.message)
        else:
            yield document


def _kind(path: Path) -> str:
    """Suffix of a file without its compression; stdin is text."""
    if str(path) == "-":
        return ".txt"
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED else suffix


def _decode(data: bytes, name: str, line: int | None = None) -> str:
    """UTF-8, or UTF-16 with a byte-order mark.

    Raises:
        DataError: Neither; says where.
    """
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        number = line or data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{name}, line {number}: byte {error.start} is not {encoding.removesuffix('-sig')}",
            fix="convert it, for example: iconv -f LATIN1 -t UTF-8 FILE > FILE.utf8.txt",
        ) from error


def _lines(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, none longer than a document may be."""
    number, limit = 0, config.max_document_bytes
    while line := stream.readline(limit + 1):
        number += 1
        if len(line) > limit:
            raise DataError(
                f"{name}, line {number}: longer than text.max_document_bytes ({limit:,})",
                fix="raise the limit, or break the line",
            )
        yield number, line


def read_text(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[Document]:
    """.txt and .md: a whole file, its paragraphs, or its lines, as `split_on` says."""
    head = stream.read(AUTO_SPLIT_BYTES + 1)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = _decode(head + stream.read(config.max_document_bytes), name)
        head, stream = text.encode("utf-8", "replace"), io.BytesIO()
    split_on = config.split_on
    if split_on == "auto" and len(head) <= AUTO_SPLIT_BYTES:
        split_on = "file"
    if split_on == "file":
        rest = stream.read(config.max_document_bytes)
        yield Document(_decode(head + rest, name), name)
        return
    joined: Any = _Joined(head, stream)
    if split_on == "line":
        for number, line in _lines(joined, name, config):
            if line.strip():
                yield Document(_decode(line, name, number).rstrip("\r\n"), name, number)
        return
    size = AUTO_PIECE_BYTES if split_on == "auto" else 1
    yield from _paragraphs(joined, name, config, size)


def _paragraphs(stream: Any, name: str, config: TextConfig, size: int) -> Iterator[Document]:
    """Groups of paragraphs of at least `size` bytes, cut at blank lines; nothing is lost.

    A text without blank lines is cut at line ends instead once it is four times as long.
    """
    piece: list[bytes] = []
    held, count = 0, 0
    for number, line in _lines(stream, name, config):
        blank = not line.strip()
        if (blank and held >= size) or (size > 1 and held >= 4 * size):
            count += 1
            yield Document(_decode(b"".join(piece), name, number), name, count)
            piece, held = [], 0
            if blank:
                continue
        piece.append(line)
        held += 0 if blank else len(line)
    if held:
        yield Document(_decode(b"".join(piece), name), name, count + 1)


class _Joined:
    """A stream whose head has been read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def readline(self, limit: int) -> bytes:
        line = self._head.readline(limit)
        if not line.endswith(b"\n") and len(line) < limit:
            line += self._rest.readline(limit - len(line))
        return line


def read_jsonl(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[Any]:
    """.jsonl: one object a line, with the text under `field`."""
    for number, line in _lines(stream, name, config):
        if line.strip():
            try:
                yield Document(_field_of(line, name, number, config.field), name, number)
            except DataError as error:
                yield error


def _field_of(line: bytes, name: str, number: int, field: str) -> str:
    where = f"{name}, line {number}"
    try:
        row = json.loads(_decode(line, name, number), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not valid JSON ({error})", fix="mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: not a JSON object", fix='write {"text": "…"} on each line')
    return _text_of(row, field, where)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [k for k, _ in pairs]
        raise ValueError(f"the key {next(k for k in names if names.count(k) > 1)!r} stands twice")
    return row


def _text_of(row: dict[Any, Any], field: str, where: str) -> str:
    if field not in row:
        have = ", ".join(repr(k) for k in list(row)[:12]) or "none"
        raise DataError(
            f"{where}: no field {field!r}; the fields are {have}",
            fix=f'name the one that holds the text: text.field="{next(iter(row), "…")}"',
        )
    value = row[field]
    if not isinstance(value, str):
        raise DataError(
            f"{where}: field {field!r} holds {type(value).__name__}, not text",
            fix="write it as a string, or name another field with text.field",
        )
    return value


def read_csv(
    stream: BinaryIO, name: str, config: TextConfig, delimiter: str = ","
) -> Iterator[Any]:
    """.csv: a header line, then rows; quoted fields may hold newlines."""
    lines = (_decode(line, name, number) for number, line in _lines(stream, name, config))
    csv.field_size_limit(config.max_document_bytes)
    rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
    try:
        for row in rows:
            try:
                text = _text_of(row, config.field, f"{name}, line {rows.line_num}")
                yield Document(text, name, rows.line_num)
            except DataError as error:
                yield error
    except csv.Error as error:
        raise DataError(f"{name}, line {rows.line_num}: {error}", fix="mend the quoting") from error


def read_tsv(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[Any]:
    """.tsv: as .csv, with tabs."""
    return read_csv(stream, name, config, "\t")


def read_html(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[Document]:
    """.html: the main text, by trafilatura where the extra `web` is installed, else all of it."""
    source = _decode(stream.read(config.max_document_bytes + 1), name)
    try:
        text = registry.extra("trafilatura", "web").extract(source) or ""
    except MissingExtraError:
        text = ""
    yield Document(text or _all_text(source), name)


class _TextOnly(html.parser.HTMLParser):
    """Text outside of scripts and styles; a newline for each block."""

    HIDDEN = frozenset({"script", "style", "template", "noscript", "head"})
    BLOCKS = frozenset(
        [
            "p",
            "div",
            "br",
            "li",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "tr",
            "section",
            "article",
            "blockquote",
            "pre",
        ]
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = max(0, self.hidden - (tag in self.HIDDEN))
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data)


def _all_text(source: str) -> str:
    parser = _TextOnly()
    parser.feed(source)
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def read_parquet(stream: BinaryIO, name: str, config: TextConfig) -> Iterator[Any]:
    """.parquet: the column `field`, a batch of rows at a time (extra `data`)."""
    parquet = registry.extra("pyarrow.parquet", "data")
    arrow = registry.extra("pyarrow", "data")
    try:
        file = parquet.ParquetFile(arrow.BufferReader(stream.read()))
        if config.field not in file.schema_arrow.names:
            _text_of(dict.fromkeys(file.schema_arrow.names), config.field, name)
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[config.field]):
            for row in batch.to_pylist():
                number += 1
                try:
                    yield Document(
                        _text_of(row, config.field, f"{name}, row {number}"), name, number
                    )
                except DataError as error:
                    yield error
    except (arrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: damaged parquet file ({str(error).splitlines()[0]})",
            fix='fetch it again, or skip damaged files with text.on_error="skip"',
        ) from error


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
