"""A finished task on files: score one with answers, or write predictions beside one without."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from inkstone import __version__, registry
from inkstone.errors import DataError, InkstoneError, RunError
from inkstone.evaluation.examples import evaluate
from inkstone.files import MANIFEST, sha256
from inkstone.inference.predict import EXAMPLES_AT_ONCE, Predictor
from inkstone.pipeline.observer import Observer
from inkstone.pipeline.partial import Partial
from inkstone.tasks._base import Task
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN
from inkstone.text.log import ReadLog
from inkstone.text.streams import open_bytes
from inkstone.text.table import find_tables, read_table

KEY = "prediction"


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
    observer: Observer | None = None,
    *,
    model: str = "",
) -> int:
    """Write every record of a table with its prediction under the key "prediction", as JSON lines.

    Memory does not grow with the table. The file appears when all is written, and not before. Cut
    off in between, the same call goes on, and the file ends byte for byte as if it had not been.

    Args:
        predictor: A task and its model.
        source: A table; labels are not needed. "-" is JSON lines on stdin.
        target: A file that does not exist yet; None for stdout.
        config: Limits of reading, and what becomes of bad lines.
        observer: Told how many records are done, and what was skipped.
        model: Hash of the model, as `folder_hash` gives it: another one does not go on.

    Returns:
        How many records there are with a prediction.

    Raises:
        UsageError: The target is there already.
        RunError: What is there of the target does not fit the input or the model.
        DataError: The source cannot be read, or the target cannot be written.
    """
    observer, config = observer or Observer(), config or TextConfig()
    log, began = ReadLog(config), time.monotonic()
    total = _count(source, config)
    pairs = _pairs(predictor.task, source, config, log)
    observer.stage("predict")
    if target is None:
        count = 0
        for count, (_, line) in enumerate(_rows(predictor, pairs), 1):
            sys.stdout.write(line.decode())
            if count % EXAMPLES_AT_ONCE == 0:
                sys.stdout.flush()
    else:
        dtype = str(getattr(predictor.model, "compute_dtype", "none")).removeprefix("torch.")
        device = getattr(predictor.model, "device", "cpu")
        maker = {
            "model": model, "version of inkstone": __version__,
            "device": str(getattr(device, "type", device)), "precision": dtype,
        }  # fmt: skip
        with Partial.open(Path(target), maker, keep=["precision"]) as partial:
            _fill(partial, predictor, pairs, total, observer)
        count = partial.records
    for what, number in log.skipped.items():
        observer.note(f"skipped {number:,} {what}, such as: {log.examples[0]}")
    where = f" in {target}" if target is not None else ""
    observer.stage_done("predict", f"{count:,} predictions{where}", time.monotonic() - began)
    return count


def _fill(
    partial: Partial,
    predictor: Predictor[Any, Any],
    pairs: Iterator[tuple[bytes, Any]],
    total: int | None,
    observer: Observer,
) -> None:
    """All rows of a file, those of an earlier attempt included."""
    if partial.kept:
        observer.note(f"goes on after {partial.kept:,} predictions that were made before")
    partial.check(given for given, _ in pairs)
    observer.stage("predict")  # the rate is that of predicting
    total = total and max(total - partial.kept, 0)
    rows = _rows(predictor, pairs)

    def write() -> bool:
        """One portion of the predictor's: what it computes together is so after a resume, too."""
        some = list(itertools.islice(rows, EXAMPLES_AT_ONCE))
        partial.write([given for given, _ in some], [line for _, line in some])
        done = partial.records - partial.kept
        observer.progress(done, total if total and total >= done else None, "examples")
        return bool(some)

    try:
        with computing(predictor.model, partial.maker["precision"]):
            while write():
                pass
        partial.finish()
    except BaseException:
        if partial.records:
            observer.note(
                f"{partial.records:,} predictions are kept in {partial.path}; "
                "the same command goes on from there"
            )
        raise


def _pairs(
    task: Task[Any, Any], source: str | Path, config: TextConfig, log: ReadLog
) -> Iterator[tuple[bytes, Any]]:
    """Each record as a JSON object, and its example; bad ones are told to the log."""
    for record in read_table(str(source), None, config=config, log=log):
        try:
            example = task.read(record, labelled=False)
        except DataError as error:
            log.bad(error)
            continue
        if KEY in record.values:
            raise DataError(
                f"{record.place}: it has a field {KEY!r} already, which would be lost",
                fix="give that field another name",
            )
        text = json.dumps(dict(record.values), ensure_ascii=False, default=str)
        yield text.encode("utf-8", "backslashreplace"), example  # half an emoji: as its escape


def _rows(
    predictor: Predictor[Any, Any], pairs: Iterator[tuple[bytes, Any]]
) -> Iterator[tuple[bytes, bytes]]:
    """Each record, and the line of it and its prediction."""
    waiting: deque[bytes] = deque()  # those whose predictions are under way

    def examples() -> Iterator[Any]:
        for given, example in pairs:
            waiting.append(given)
            yield example

    for _, prediction in predictor(examples()):
        given = waiting.popleft()
        answer = json.dumps(prediction.to_dict(), ensure_ascii=False)
        line = f', "{KEY}": {answer}}}\n'.encode("utf-8", "backslashreplace")
        yield given, given[:-1] + line


def _count(source: str | Path, config: TextConfig) -> int | None:
    """About how many records there are, for the time that is left; None where nobody knows.

    Lines are counted, which is a hundred times as fast as reading them.
    """
    total = 0
    for path in find_tables(source):
        if path == STDIN:
            return None
        try:
            if path.suffix == ".parquet":
                parquet = registry.extra("pyarrow.parquet", "data")
                total += int(parquet.read_metadata(path).num_rows)
                continue
            with open_bytes(path, config) as (stream, _):
                while block := stream.read(1 << 20):
                    total += block.count(b"\n")
        except (InkstoneError, OSError, ValueError):
            return None  # what is wrong is said when it is read
    return total


def folder_hash(folder: Path) -> str:
    """SHA-256 over the files of a model folder."""
    digest = hashlib.sha256()
    for path in sorted(x for x in folder.iterdir() if x.suffix in {".json", ".safetensors"}):
        if path.is_file() and path.name != MANIFEST:
            digest.update(f"{path.name}\0{sha256(path)}\0".encode())
    return digest.hexdigest()


@contextlib.contextmanager
def computing(model: Any, precision: str) -> Iterator[None]:
    """Within the block a network computes in this precision; what is no network, as ever."""
    before = getattr(model, "compute_dtype", None)
    if before is None:
        yield
        return
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if precision not in dtypes:
        raise RunError(f"unknown precision {precision[:40]!r}", fix="begin anew")
    model.compute_dtype = dtypes[precision]
    try:
        yield
    finally:
        model.compute_dtype = before


def predict(predictor: Predictor[Any, Any], examples: Iterable[Any]) -> list[Any]:
    """Predictions of examples, in their order."""
    return [prediction for _, prediction in predictor(examples)]
