"""A finished task on files: score one with answers, or write predictions beside one without."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from inkstone.errors import DataError, UsageError
from inkstone.evaluation.examples import evaluate
from inkstone.files import sync
from inkstone.inference.predict import Predictor
from inkstone.text.config import TextConfig
from inkstone.text.table import Record, find_tables, read_table

FLUSH_EVERY = 256  # predictions


def score_file(
    predictor: Predictor[Any, Any], data: str | Path, config: TextConfig | None = None
) -> dict[str, Any]:
    """Scores, errors and worst mistakes on labelled examples; as `evaluation.examples.evaluate`.

    Args:
        predictor: A task and its model.
        data: A table; of a folder with a file named test…, that file alone.
        config: Limits of reading.

    Raises:
        DataError: The data cannot be read, has other fields, or holds no example.
    """
    task = predictor.task
    tables = _tested(data)
    records = read_table(tables, task.wanted, config=config or TextConfig())
    report = evaluate(predictor, (task.read(record) for record in records))
    return {"task": task.NAME, "data": [path.name for path in tables], **report}


def _tested(data: str | Path) -> list[Path]:
    tables = find_tables(data)
    if Path(data).is_dir():
        return [path for path in tables if path.name.lower().startswith("test")] or tables
    return tables


def predict_file(
    predictor: Predictor[Any, Any],
    source: str | Path,
    target: str | Path | None,
    config: TextConfig | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write every record of a table with its prediction under the key "prediction", as JSON lines.

    Memory does not grow with the table. The file appears when all is written, and not before.

    Args:
        predictor: A task and its model.
        source: A table; labels are not needed. "-" is JSON lines on stdin.
        target: A file that does not exist yet; None for stdout.
        config: Limits of reading.
        progress: Told how many records are done.

    Returns:
        How many records there were.

    Raises:
        UsageError: The target is there already.
        DataError: The source cannot be read, or the target cannot be written.
    """
    task = predictor.task
    read: list[Record] = []  # those whose predictions are under way

    def examples() -> Iterator[Any]:
        for record in read_table(str(source), task.wanted, config=config or TextConfig()):
            example = task.read(record, labelled=False)
            read.append(record)
            yield example

    done = 0
    with _writer(target) as file:
        for done, (_, prediction) in enumerate(predictor(examples()), 1):
            row = {**read.pop(0).values, "prediction": prediction.to_dict()}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            if progress is not None and done % FLUSH_EVERY == 0:
                progress(done)
    return done


@contextlib.contextmanager
def _writer(target: str | Path | None) -> Iterator[IO[str]]:
    """Stdout, or a file that appears under its name when the block ends well."""
    if target is None:
        yield sys.stdout
        return
    path = Path(target)
    if path.exists():
        raise UsageError(f"{path} is there already", fix="choose another --output")
    private = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(private, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.link(private, path)  # unlike a rename, never onto a file that has come meanwhile
        sync(path.parent)
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror or error}", fix="choose another --output"
        ) from error
    finally:
        private.unlink(missing_ok=True)


def predict(predictor: Predictor[Any, Any], examples: Iterable[Any]) -> list[Any]:
    """Predictions of examples, in their order."""
    return [prediction for _, prediction in predictor(examples)]
