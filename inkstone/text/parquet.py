"""The .parquet reader (extra `data`)."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO

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
    arrow, parquet = registry.extra("pyarrow", "data"), registry.extra("pyarrow.parquet", "data")
    field, name = file.config.field, file.name
    with tempfile.TemporaryFile() as whole:  # parquet is read from its end
        shutil.copyfileobj(file.stream, whole, 1 << 20)
        left = expansion_limit(whole.tell(), file.config)
        whole.seek(0)
        try:
            table = _open(arrow, parquet, whole, file)
            _check_sizes(table, left, file)
            number = 0
            for batch in table.iter_batches(BATCH_ROWS, columns=[field], use_threads=False):
                for value in batch.column(0):
                    number += 1
                    text = value.as_py() or ""
                    left -= len(text)
                    if left < 0:
                        raise _bomb(file)
                    yield Document(text, name, number)
        except (arrow.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise DataError(f"{name}: damaged parquet file ({reason})", fix=SKIP) from error


def _open(arrow: Any, parquet: Any, whole: BinaryIO, file: Opened) -> Any:
    field, name = file.config.field, file.name
    schema = parquet.read_schema(whole)
    if field not in schema.names:
        raise missing_field(field, dict.fromkeys(schema.names), name)
    kind = schema.field(field).type
    if arrow.types.is_dictionary(kind):
        kind = kind.value_type
    if not (arrow.types.is_string(kind) or arrow.types.is_large_string(kind)):
        raise DataError(
            f"{name}: column {field!r} holds {kind}, not text",
            fix="name another column with text.field",
        )
    whole.seek(0)
    return parquet.ParquetFile(whole, read_dictionary=[field], pre_buffer=False)


def _check_sizes(table: Any, limit: int, file: Opened) -> None:
    """What the file itself says about its size, before anything is allocated."""
    metadata = table.metadata
    column = next(
        i
        for i in range(metadata.num_columns)
        if metadata.schema.column(i).path == file.config.field
    )
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    if sum(group.column(column).total_uncompressed_size for group in groups) > limit:
        raise _bomb(file)


def _bomb(file: Opened) -> DataError:
    return DataError(
        f"{file.name}: its texts are more than {file.config.max_expansion:g} times as long as it",
        fix="if it is sound, raise text.max_expansion; else leave it out",
    )
