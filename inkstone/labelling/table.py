"""The texts of a table, each once, whatever its rows are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inkstone.errors import DataError, UsageError
from inkstone.labelling.store import text_id
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN, find_files
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value, text_of
from inkstone.text.table import read_table

MAX_ROWS = 200_000


@dataclass(frozen=True, slots=True)
class Text:
    """One text of the table.

    Attributes:
        id: By which its label is kept.
        text: The text.
        place: Where it stands.
        fields: The whole record.
        label: What the table itself says; "" where it says nothing.
    """

    id: str
    text: str
    place: str
    fields: Mapping[str, Any]
    label: str = ""


def read_texts(data: str | Path, text_field: str, label_field: str | None) -> list[Text]:
    """The texts of a table, each once; a label that stands beside one is a person's.

    Raises:
        DataError: The table is damaged, empty or too large, or a field is missing.
    """
    found: dict[str, Text] = {}
    for number, record in enumerate(read_table(data, (text_field,), config=TextConfig()), 1):
        if number > MAX_ROWS:
            raise DataError(
                f"{data}: more than {MAX_ROWS:,} rows", fix="label a part of them; it will do"
            )
        text = normalize(text_of(record.values, text_field, record.place, option="--field"))
        if not text.strip():
            continue
        label = _given(record.values, label_field, record.place)
        id = text_id(text)
        if id not in found or (label and not found[id].label):
            found[id] = Text(id, text, record.place, record.values, label)
    if not found:
        raise DataError(f"{data} holds no text")
    return list(found.values())


def _given(values: Mapping[str, Any], field: str | None, place: str) -> str:
    if field is None:
        return ""
    value = values.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    if isinstance(value, str):
        return normalize(value.strip())
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(
            f"{place}: field {field!r} holds {kind_of_value(value)}, not a label",
            fix="name another field with --label-field",
        )
    return str(value)


def check_place(out: Path, data: str) -> None:
    """A file of labels is none of the tables that are labelled.

    Raises:
        UsageError: It is.
    """
    files = {path.resolve() for path in find_files(data)} if data != str(STDIN) else set()
    if out.resolve() in files:
        raise UsageError(f"{out} is part of the data", fix="choose another file with --out")
