"""Formats with one record a line: .jsonl, .csv and .tsv."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from inkstone.errors import DataError
from inkstone.text.document import Document
from inkstone.text.opened import Opened, decode, numbered_lines

_CONVERSATIONS = ("messages", "conversations", "conversation")
_PAIRS = (("prompt", "completion"), ("instruction", "output"), ("source", "target"))


def read_jsonl(file: Opened) -> Iterator[Document]:
    """.jsonl: one object a line, with the text under `field`; null is empty text.

    Blank lines are passed over. A key that stands twice is an error, since readers differ in which
    one they take. NaN and Infinity are let pass in other fields: they do not touch the text.
    """
    field, name = file.config.field, file.name
    for number, row in json_objects(file):
        try:
            text = text_of(row, field, f"{name}, line {number}", option="text.field")
        except DataError as error:
            file.bad(error)
        else:
            yield Document(text, name, number)


def json_objects(file: Opened) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The objects of a .jsonl with the numbers of their lines; bad lines are told to `file.bad`."""
    parse = json.JSONDecoder(object_pairs_hook=_no_duplicates).raw_decode
    for number, line in numbered_lines(file):
        line = line.strip()
        if not line:
            continue
        try:
            row = _parse(parse, line, file.name, number)
        except DataError as error:
            file.bad(error)
        else:
            yield number, row


def _parse(parse: Any, line: bytes, name: str, number: int) -> Mapping[str, Any]:
    where = f"{name}, line {number}"
    text = decode(line, name, number)
    try:
        row, end = parse(text)
        if end != len(text):
            raise ValueError(f"more text after the object, at character {end + 1}")
    except RecursionError as error:
        raise DataError(f"{where}: JSON nested too deeply", fix="remove the line") from error
    except ValueError as error:
        raise DataError(
            f"{where}: not valid JSON: {error}", fix="mend or remove the line"
        ) from error
    if not isinstance(row, dict):
        raise DataError(
            f"{where}: holds {kind_of_value(row)}, not an object",
            fix='write {"text": "…"} on each line',
        )
    return row


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [key for key, _ in pairs]
        twice = next(key for key in names if names.count(key) > 1)
        raise ValueError(f"the key {twice[:100]!r} stands twice")
    return row


def text_of(row: Mapping[str, Any], field: str, where: str, *, option: str) -> str:
    """The text of a field; null is empty.

    Args:
        row: A record.
        field: Which field.
        where: The record's place, for messages.
        option: The setting that names the field.

    Raises:
        DataError: No such field, or no text in it.
    """
    value = row.get(field)
    if isinstance(value, str) and (value.isascii() or not _has_surrogate(value)):
        return value
    if isinstance(value, str):
        raise DataError(
            f"{where}: field {field!r} holds half of a surrogate pair (an emoji cut in two?)",
            fix=r"remove the lone \ud800…\udfff escape",
        )
    if field not in row:
        raise missing_field(field, row, where)
    if value is None:
        return ""
    raise DataError(
        f"{where}: field {field!r} holds {kind_of_value(value)}, not text",
        fix=f"write it as a string, or name another field with {option}",
    )


def missing_field(field: str, row: Mapping[str, Any], where: str) -> DataError:
    """Says which fields are there and which one to set."""
    return DataError(f"{where}: no field {field!r}; it has {listed(row)}", fix=_advice(row))


def listed(names: Iterable[Any]) -> str:
    """Field names for a message, shortened."""
    names = [str(name) for name in names]
    shown = ", ".join(repr(name[:60]) for name in names[:12]) or "none"
    return shown + (", …" if len(names) > 12 else "")


def _advice(row: Mapping[str, Any]) -> str:
    for name in _CONVERSATIONS:
        if name in row:
            return (
                f"{name!r} is dialogue; to train on plain text, write each one into a field "
                '"text" first'
            )
    for first, second in _PAIRS:
        if first in row and second in row:
            return (
                f'set text.field="{second}" to read those alone, or join {first!r} and '
                f'{second!r} in a field "text" first'
            )
    texts = [(len(value), str(name)) for name, value in row.items() if isinstance(value, str)]
    named = max(texts)[1] if texts else next(map(str, row), "…")
    return f'name the field that holds the text, for example text.field="{named[:60]}"'


def kind_of_value(value: Any) -> str:
    """What a JSON value is, for people."""
    names = {type(None): "null", bool: "a truth value", list: "a list", dict: "an object"}
    return names.get(type(value), "text" if isinstance(value, str) else "a number")


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def read_csv(file: Opened) -> Iterator[Document]:
    """.csv: a line of column names, then rows; a quoted field may hold newlines (RFC 4180)."""
    return _read_column(file, CSV)


def read_tsv(file: Opened) -> Iterator[Document]:
    """.tsv: a line of column names, then rows; a quotation mark is a plain character (IANA)."""
    return _read_column(file, TSV)


def _read_column(file: Opened, dialect: Mapping[str, Any]) -> Iterator[Document]:
    field = file.config.field
    for number, row in columns(file, (field,), dialect):
        yield Document(row[field], file.name, number)


CSV: Mapping[str, Any] = {"strict": True, "delimiter": ","}
TSV: Mapping[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}


def columns(
    file: Opened, fields: Sequence[str], dialect: Mapping[str, Any]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a table with a line of column names, as {field: text}, and their line numbers.

    Args:
        file: The table.
        fields: The columns that are read; () for all.
        dialect: CSV or TSV.

    Raises:
        DataError: A column is missing or stands twice, or the quoting is broken.
    """
    name, limit = file.name, file.config.max_document_bytes
    csv.field_size_limit(min(limit, 2**31 - 1))
    lines = (decode(line, name, number) for number, line in numbered_lines(file))
    rows = csv.reader(lines, **dialect)
    header = next(_sound(rows, name), None)
    if header is None:
        return
    for field in fields or header:
        if header.count(field) > 1:
            raise DataError(f"{name}, line 1: {field!r} stands twice", fix="rename one column")
        if field not in header:
            raise missing_field(field, dict.fromkeys(header), f"{name}, line 1")
    places = [(field, header.index(field)) for field in fields or header]
    for row in _sound(rows, name):
        if len(row) == len(header):
            yield rows.line_num, {field: row[place] for field, place in places}
        elif row:  # a blank line is no row
            file.bad(
                DataError(
                    f"{name}, line {rows.line_num}: {len(row)} fields, but {len(header)} columns",
                    fix="mend the row (quote a field that holds the separator)",
                )
            )


def _sound(rows: Any, name: str) -> Iterator[list[str]]:
    """Rows until one cannot be parsed: what comes after it has no sure beginning."""
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(
            f"{name}, line {rows.line_num}: {error}",
            fix='mend the quoting: "a field with ""quotes"" in it"',
        ) from error
