"""Reading .parquet (extra `data`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

from inkstone import registry
from inkstone.errors import DataError
from inkstone.text.document import Document
from inkstone.text.opened import Opened
from inkstone.text.rows import missing_field
from inkstone.text.streams import SKIP, expansion_limit

BATCH_ROWS = 256


def read_parquet(file: Opened) -> Iterator[Document]:
    """The text column, a few rows at a time; null is empty text.

    The column stays dictionary-encoded until a row is taken, so that a million references to one
    long string take no memory.

    Raises:
        DataError: Damaged, no such column, no text in it, or a bomb.
        MissingExtraError: pyarrow is not installed.
    """
    field = file.config.field
    for number, names, row in parquet_rows(file, (field,), text=True):
        if field not in row:
            raise missing_field(field, dict.fromkeys(names), file.name)
        yield Document(row[field] or "", file.name, number)


def parquet_rows(
    file: Opened, wanted: Sequence[str] | None, *, text: bool = False
) -> Iterator[tuple[int, tuple[str, ...], dict[str, Any]]]:
    """Some columns of a table: number of the row, names of all columns, values of those wanted.

    A file without a wanted column gives rows without it.

    Args:
        file: The table.
        wanted: Columns to read; None for all.
        text: They must hold text.

    Raises:
        DataError: Damaged, no text where it must be, or a bomb.
        MissingExtraError: pyarrow is not installed.
    """
    arrow, parquet = registry.extra("pyarrow", "data"), registry.extra("pyarrow.parquet", "data")
    name = file.name
    with tempfile.TemporaryFile() as whole:  # parquet is read from its end
        shutil.copyfileobj(file.stream, whole, 1 << 20)
        left = expansion_limit(whole.tell(), file.config)
        whole.seek(0)
        try:
            schema = parquet.read_schema(whole)
            names = tuple(schema.names)
            read = dict.fromkeys(names if wanted is None else wanted)
            there = [field for field in read if field in names]
            dictionaries = [f for f in there if _is_text(arrow, schema.field(f).type)]
            for field in there if text else ():
                if field not in dictionaries:
                    raise DataError(
                        f"{name}: column {field!r} holds {schema.field(field).type}, not text",
                        fix="name another column with text.field",
                    )
            whole.seek(0)
            table = parquet.ParquetFile(whole, read_dictionary=dictionaries, pre_buffer=False)
            _check_sizes(table, there, left, file)
            number = 0
            for batch in table.iter_batches(BATCH_ROWS, columns=there, use_threads=False):
                held = [batch.column(field) for field in there]
                for row in range(batch.num_rows):
                    number += 1
                    values = [column[row].as_py() for column in held]
                    left -= sum(map(_size, values))
                    if left < 0:
                        raise _bomb(file)
                    yield number, names, dict(zip(there, values, strict=True))
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(f"{name}: damaged parquet file ({reason})", fix=SKIP) from error


def _is_text(arrow: Any, kind: Any) -> bool:
    kind = kind.value_type if arrow.types.is_dictionary(kind) else kind
    return bool(arrow.types.is_string(kind) or arrow.types.is_large_string(kind))


def _size(value: Any) -> int:
    """Roughly the bytes of a value."""
    if isinstance(value, list):
        return 8 + sum(map(_size, value))
    return len(value) if isinstance(value, str) else 8


def _check_sizes(table: Any, fields: Sequence[str], limit: int, file: Opened) -> None:
    """What the file itself says about its size, before anything is allocated."""
    metadata = table.metadata
    places = [
        i
        for i in range(metadata.num_columns)
        if metadata.schema.column(i).path.partition(".")[0] in fields
    ]
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    if sum(group.column(i).total_uncompressed_size for group in groups for i in places) > limit:
        raise _bomb(file)


def _bomb(file: Opened) -> DataError:
    return DataError(
        f"{file.name}: its texts are more than {file.config.max_expansion:g} times as long as it",
        fix="if it is sound, raise text.max_expansion; else leave it out",
    )
