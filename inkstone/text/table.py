"""Records with named fields out of .jsonl, .csv, .tsv and .parquet: the rows of labelled examples.

The same limits hold as for text (`text.config`), and the same errors name file and line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inkstone.errors import DataError
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN, Data, find_files, kind_of
from inkstone.text.log import ReadLog
from inkstone.text.opened import Opened
from inkstone.text.parquet import parquet_rows
from inkstone.text.rows import CSV, TSV, columns, json_objects
from inkstone.text.streams import display, open_bytes, utf8

TABLES = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})
_FIX = "give a .jsonl, .csv, .tsv or .parquet file (plain or .gz or .zst) with one example a line"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a table.

    Attributes:
        values: What its fields hold; text where the format knows nothing else (.csv, .tsv).
        names: All fields that the table has, also those that were not read.
        source: Path of the file, printable.
        index: Line or row in that file, from 1.
    """

    values: Mapping[str, Any]
    names: tuple[str, ...]
    source: str
    index: int

    @property
    def place(self) -> str:
        """Where it stands, for messages."""
        return f"{self.source}, line {self.index}"


def find_tables(data: Data) -> list[Path]:
    """The tables that `data` means; other files of a folder are passed over.

    Raises:
        DataError: Nothing is there, or what was named is no table.
    """
    files = find_files(data)
    tables = [path for path in files if path == STDIN or kind_of(path) in TABLES]
    if not tables:
        raise DataError(f"{display(files[0])} is no table of examples", fix=_FIX)
    named = {Path(part) for part in ([data] if isinstance(data, str | Path) else data)}
    for path in files:
        if path in named and path not in tables:
            raise DataError(f"{display(path)} is no table of examples", fix=_FIX)
    return tables


def read_table(
    data: Data, wanted: Iterable[str] | None, *, config: TextConfig, log: ReadLog | None = None
) -> Iterator[Record]:
    """All records of some tables, in the order of `find_files`, one at a time.

    Args:
        data: A file, a folder, a pattern, "-" for JSON lines on stdin, or a list of those.
        wanted: Fields that will be used, as far as they are there; a .parquet reads only these.
            None for all.
        config: Limits and policies.
        log: Under `on_error="skip"`, counts what was skipped.

    Raises:
        DataError: A file is damaged or no table, or a record is bad.
        MissingExtraError: A .parquet without the extra `data`.
    """
    log = log or ReadLog(config)
    wanted = None if wanted is None else tuple(wanted)
    for path in find_tables(data):
        try:
            yield from _read_file(path, wanted, config, log)
        except DataError as error:
            log.bad(error, "damaged files")
        finally:
            log.finish_file()


def _read_file(
    path: Path, wanted: tuple[str, ...] | None, config: TextConfig, log: ReadLog
) -> Iterator[Record]:
    name = display(path)
    kind = ".jsonl" if path == STDIN else kind_of(path)
    with open_bytes(path, config) as (stream, raw):
        log.current = None if path == STDIN else raw
        text = stream if kind == ".parquet" else utf8(stream, name)
        file = Opened(text, name, config, log.bad)
        if kind == ".parquet":
            for number, names, values in parquet_rows(file, wanted):
                yield Record(values, names, name, number)
            return
        dialect = {".csv": CSV, ".tsv": TSV}.get(kind)
        rows = json_objects(file) if dialect is None else columns(file, (), dialect)
        for number, row in rows:
            yield Record(row, tuple(row), name, number)
