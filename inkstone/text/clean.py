"""Raw files to cleaned documents in two stores that share no near-duplicate: train and valid.

One pass reads, normalises, drops what is empty or equal to an earlier document, and writes the rest
to a spool on disk, with signatures. Then near-duplicates are found and the spool is dealt out. So
memory does not grow with the text, only by about 120 bytes for each document that is kept, and the
disk holds the text twice for a moment.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import struct
from array import array
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.config import Progress
from inkstone.errors import DataError
from inkstone.files import atomic_folder, write_json
from inkstone.text.config import TextConfig
from inkstone.text.document import Document
from inkstone.text.files import STDIN, Data, find_files
from inkstone.text.log import ReadLog
from inkstone.text.near import NearDuplicates
from inkstone.text.normalize import normalize
from inkstone.text.readers import read_files
from inkstone.text.statistics import TextStatistics
from inkstone.text.store import DocumentStore, StoreWriter
from inkstone.text.streams import open_file

__all__ = ["TextStatistics", "clean", "content_hash"]

EMPTY, SHORT, EXACT, NEAR = "empty", "too short", "exact duplicates", "near-duplicates"
REASONS = (EXACT, NEAR, EMPTY, SHORT)
PROGRESS_DOCUMENTS = 256
_PACKAGES = ("rensa", "ftfy", "trafilatura", "pyarrow")  # that decide what comes out


def clean(
    data: Data | Iterable[Document],
    out: Path,
    config: TextConfig,
    *,
    progress: Progress | None = None,
) -> TextStatistics:
    """Write `out`/train, `out`/valid (see `DocumentStore`) and `out`/statistics.json.

    Two documents are exact duplicates when they are equal after `normalize`, apart from white space
    at their ends (64 bits of BLAKE2b: one pair in 10^19 is taken for equal wrongly). Of a group of
    near-duplicates the first is kept; see `near` for what that means.

    Whether a document is held out depends on its content and the seed alone, so it stays on its
    side when others come and go; with two documents or more, each side gets one. Near-duplicates
    are always on one side.

    Args:
        data: Files (see `files.find_files`) or documents.
        out: A folder that appears when all is done, and not before.
        config: What to do.
        progress: Told the bytes read, on disk.

    Raises:
        DataError: A file is damaged, a record is bad, or nothing is left.
        CheckpointError: `out` cannot be written.
    """
    log, total = ReadLog(config), None
    if isinstance(data, str | Path | list | tuple):
        files = find_files(data, log=log)
        total = _size_on_disk(files) if progress is not None else None
        documents: Iterable[Document] = read_files(files, config=config, log=log)
    else:
        documents = data  # type: ignore[assignment]
    with atomic_folder(out) as folder:
        spool = folder / "spool"
        with _Spool(spool, config) as cleaner:
            for number, document in enumerate(documents):
                cleaner.take(document)
                if progress is not None and number % PROGRESS_DOCUMENTS == 0:
                    progress(log.bytes_done if total else cleaner.bytes_read, total, "bytes")
            statistics = cleaner.deal_out(folder, log)
        for path in spool.iterdir():
            path.unlink()
        spool.rmdir()
        write_json(folder / "statistics.json", statistics.to_dict())
    return statistics


def content_hash(data: Data, config: TextConfig) -> str:
    """SHA-256 over the files' names and contents, the settings and the versions of packages used.

    Names are relative to what the user named, so a moved folder has the same hash.

    Raises:
        DataError: A file cannot be read, or is stdin, which can be read only once.
    """
    digest = hashlib.sha256(config.model_dump_json().encode())
    for package in _PACKAGES:
        digest.update(f"{package}={_version(package)};".encode())
    log = ReadLog(config)
    for part in [data] if isinstance(data, str | Path) else data:
        for path in find_files(part, log=log):
            if path == STDIN:
                raise DataError("stdin can be read only once", fix="save it to a file first")
            name = path.relative_to(part) if Path(part) in path.parents else Path(path.name)
            digest.update(bytes(name) + b"\0")
            try:
                with open_file(path) as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())  # type: ignore[arg-type]
            except DataError as error:
                log.bad(error)
            except OSError as error:
                log.bad(DataError(f"{path}: {error.strerror}"))
    return digest.hexdigest()


class _Spool:
    """Documents in; after the last one, two stores out."""

    def __init__(self, folder: Path, config: TextConfig) -> None:
        self._config, self._folder = config, folder
        self._key = config.seed.to_bytes(8, "little")
        self._seen: set[int] = set()
        self._places = array("Q")  # where in [0, 2^64) each spooled document falls for the split
        self._dropped: Counter[str] = Counter()
        self._documents_read = self.bytes_read = 0
        self._stack = ExitStack()

    def __enter__(self) -> _Spool:
        self._writer = self._stack.enter_context(StoreWriter(self._folder))
        self._store: DocumentStore
        self._near: NearDuplicates | None = None
        if self._config.dedup == "near" or self._config.valid_fraction > 0:
            threshold = self._config.near_threshold
            fetch = lambda number: self._store.bytes(number)  # noqa: E731 - there is no store yet
            self._near = NearDuplicates(self._folder, threshold, fetch)
            self._stack.callback(self._near.close)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def take(self, document: Document) -> None:
        """Normalise a document; spool it unless it is to be dropped."""
        config, given = self._config, document.text
        text = normalize(given, repair=config.repair)
        data = text.encode("utf-8")
        self._documents_read += 1
        self.bytes_read += (
            len(data) if text is given else len(given.encode("utf-8", "surrogatepass"))
        )
        if not text or text.isspace():
            self._dropped[EMPTY] += 1
            return
        if len(text) < config.min_chars:
            self._dropped[SHORT] += 1
            return
        digest = hashlib.blake2b(data.strip(), digest_size=16, key=self._key).digest()
        fingerprint, place = struct.unpack("<QQ", digest)
        if config.dedup != "none":
            if fingerprint in self._seen:
                self._dropped[EXACT] += 1
                return
            self._seen.add(fingerprint)
        self._places.append(place)
        self._writer.add(data, document.source, document.index)
        if self._near is not None:
            self._near.add(data)

    def deal_out(self, out: Path, log: ReadLog) -> TextStatistics:
        """Find the near-duplicates, and copy what is kept to its side."""
        self._seen.clear()
        self._writer.finish()
        self._store = store = DocumentStore(self._folder)
        first = np.arange(len(store)) if self._near is None else self._near.groups()
        kept = np.ones(len(store), bool)
        if self._config.dedup == "near":
            kept = first == np.arange(len(store))
            self._dropped[NEAR] = len(store) - int(kept.sum())
        places = np.array(self._places, np.uint64)[first]
        held_out = hold_out(places[kept], self._config.valid_fraction)
        with StoreWriter(out / "train") as train, StoreWriter(out / "valid") as valid:
            numbers = np.flatnonzero(kept)
            for record, side in zip(store.records(numbers), held_out, strict=True):
                (valid if side else train).add(*record)
        statistics = TextStatistics(
            documents_read=self._documents_read,
            documents_kept=len(numbers),
            bytes_read=self.bytes_read,
            bytes_kept=train.n_bytes + valid.n_bytes,
            dropped={why: self._dropped[why] for why in REASONS if self._dropped[why]},
            train_documents=train.n_documents,
            valid_documents=valid.n_documents,
            train_bytes=train.n_bytes,
            valid_bytes=valid.n_bytes,
            skipped=dict(sorted(log.skipped.items())),
            examples=log.examples,
        )
        if not len(numbers):
            raise DataError(
                f"no text is left: {statistics.line()}",
                fix="check the path, and text.field, text.min_chars and text.on_error",
            )
        return statistics


def hold_out(places: npt.NDArray[np.uint64], fraction: float) -> npt.NDArray[np.bool_]:
    """Which documents are held out: those whose place in [0, 2^64) is in the first `fraction`.

    Documents with equal places stay together. If there are two places, both sides get one.
    """
    held_out = places < np.uint64(round(fraction * 2**64))
    if fraction > 0 and len(places) and places.min() < places.max():
        held_out |= places == places.min()
        held_out &= places != places.max()
    elif len(places):
        held_out[:] = False  # what there is, is for training
    return held_out


def _size_on_disk(files: list[Path]) -> int | None:
    try:
        return sum(path.stat().st_size for path in files if path != STDIN) or None
    except OSError:
        return None  # the reader says what is wrong


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
