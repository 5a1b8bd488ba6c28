"""Raw files to cleaned documents, in two stores that share no near-duplicate: train and valid."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from inkstone.config import Progress
from inkstone.errors import DataError
from inkstone.files import atomic_folder
from inkstone.text.config import TextConfig
from inkstone.text.dedup import ExactIndex, NearIndex, fingerprint
from inkstone.text.document import Document
from inkstone.text.normalize import normalize
from inkstone.text.readers import Source, find_files, read
from inkstone.text.store import StoreWriter

BATCH_DOCUMENTS, BATCH_CHARS = 256, 1 << 19
EXACT, NEAR, EMPTY, SHORT = "exact duplicates", "near-duplicates", "empty", "too short"
BOTH_SIDES = "near both sides of the split"


@dataclass(frozen=True)
class TextStatistics:
    """What was read, kept and dropped, and why. Bytes are UTF-8 of the documents' text."""

    documents_read: int
    documents_kept: int
    bytes_read: int
    bytes_kept: int
    dropped: dict[str, int]
    train_documents: int
    valid_documents: int
    train_bytes: int
    valid_bytes: int
    skipped: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line that a person can check."""
        dropped = ", ".join(f"{n:,} {why}" for why, n in sorted(self.dropped.items())) or "none"
        skipped = f"; skipped {len(self.skipped):,} damaged" if self.skipped else ""
        return (
            f"{self.documents_read:,} documents ({_size(self.bytes_read)}) read; "
            f"kept {self.documents_kept:,} ({_size(self.bytes_kept)}); dropped: {dropped}"
            f"{skipped}; {self.train_documents:,} to train on, {self.valid_documents:,} held out "
            f"({_size(self.valid_bytes)})"
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> TextStatistics:
        """What `to_dict` gave.

        Raises:
            DataError: It is something else.
        """
        try:
            return cls(**raw)
        except TypeError as error:
            raise DataError(f"not the statistics of a cleaned corpus: {error}") from error


def content_hash(data: Source, config: TextConfig) -> str:
    """SHA-256 over the content of all files, in order, and the settings; never a time stamp."""
    digest = hashlib.sha256(config.model_dump_json().encode())
    for path in find_files(data):
        if str(path) == "-":
            raise DataError("stdin can be read only once", fix="save it to a file first")
        try:
            with open(path, "rb") as file:
                inner = hashlib.file_digest(file, "sha256")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror}", fix="check its rights") from error
        digest.update(path.suffix.encode("utf-8", "surrogateescape") + inner.digest())
    return digest.hexdigest()


def clean(
    data: Source | Iterable[Document],
    out: Path,
    config: TextConfig,
    *,
    progress: Progress | None = None,
) -> TextStatistics:
    """Normalise, filter, de-duplicate and split documents into `out`/train and `out`/valid.

    Memory does not grow with the corpus but for the tables of `dedup`. `out` appears when all is
    done, and not before.

    Args:
        data: Files (see `readers.find_files`) or documents.
        out: Folder to write; also gets statistics.json.
        config: What to do.
        progress: Told the bytes of text done.

    Raises:
        DataError: A file or row is damaged, or nothing is left to train on.
    """
    skipped: list[str] = []
    if isinstance(data, (str, Path)) or _is_paths(data):
        documents: Iterable[Document] = read(data, config, skipped=skipped)  # type: ignore[arg-type]
    else:
        documents = data  # type: ignore[assignment]
    with atomic_folder(out) as folder, ExitStack() as stack:
        split = _Split(folder, config, stack)
        for batch in _batches(documents):
            split.take(batch)
            if progress is not None:
                progress(split.bytes_read, None, "bytes")
        statistics = split.finish(skipped)
        content = json.dumps(statistics.to_dict(), ensure_ascii=False, indent=1)
        (folder / "statistics.json").write_text(content, encoding="utf-8")
    return statistics


class _Split:
    """Documents in, two stores out."""

    def __init__(self, folder: Path, config: TextConfig, stack: ExitStack) -> None:
        self.config = config
        self.sides = {}
        for name in ("train", "valid"):
            (folder / name).mkdir()
            self.sides[name] = StoreWriter(folder / name)
            stack.callback(self.sides[name].close)
        self.exact = ExactIndex()
        self.near = NearIndex(config.near_threshold, self._fetch)
        self.dropped: Counter[str] = Counter()
        self.documents_read = self.bytes_read = 0

    def take(self, batch: list[Document]) -> None:
        config = self.config
        texts = []
        for document in batch:
            text = normalize(document.text, repair=config.repair)
            self.documents_read += 1
            self.bytes_read += len(text) if text.isascii() else len(text.encode("utf-8"))
            if not text or text.isspace():
                self.dropped[EMPTY] += 1
            elif len(text) < config.min_chars:
                self.dropped[SHORT] += 1
            else:
                texts.append(text)
        fresh = []
        for text in texts:
            print_ = fingerprint(text)
            if self.exact.add(print_) or config.dedup == "none":
                fresh.append((text, print_))
            else:
                self.dropped[EXACT] += 1
        if not fresh:
            return
        keys = self.near.keys([text for text, _ in fresh])
        for (text, print_), key in zip(fresh, keys, strict=True):
            self._place(text, print_, key)

    def _place(self, text: str, print_: int, key: Any) -> None:
        """Near an earlier document: drop it, or keep it on the same side."""
        alike = self.near.near(key, text)
        if alike and self.config.dedup == "near":
            self.dropped[NEAR] += 1
            return
        sides = {number & 1 for number in alike}
        if len(sides) > 1:
            self.dropped[BOTH_SIDES] += 1
            return
        valid = bool(sides.pop()) if sides else self._held_out(print_)
        store = self.sides["valid" if valid else "train"]
        self.near.add(key, store.count * 2 + valid)
        store.append(text)

    def _fetch(self, number: int) -> str:
        return self.sides["valid" if number & 1 else "train"][number >> 1]

    def _held_out(self, print_: int) -> bool:
        seeded = hashlib.blake2b(
            print_.to_bytes(8, "little"), digest_size=8, key=self.config.seed.to_bytes(8, "little")
        )
        share = int.from_bytes(seeded.digest(), "little") / 2**64
        return share < self.config.valid_fraction

    def finish(self, skipped: list[str]) -> TextStatistics:
        train, valid = self.sides["train"], self.sides["valid"]
        kept = train.count + valid.count
        if kept == 0:
            raise DataError(
                f"nothing to train on: {self.documents_read:,} documents read, none kept "
                f"({dict(self.dropped) or 'all files are empty'})",
                fix="check the path, text.field and text.min_chars",
            )
        if kept > 1 and self.config.valid_fraction > 0:  # each side gets one document at least
            if valid.count == 0:
                valid.append(train.pop())
            elif train.count == 0:
                train.append(valid.pop())
        elif train.count == 0:
            train.append(valid.pop())
        for store in (train, valid):
            store.close()
        return TextStatistics(
            documents_read=self.documents_read,
            documents_kept=kept,
            bytes_read=self.bytes_read,
            bytes_kept=train.n_bytes + valid.n_bytes,
            dropped=dict(self.dropped),
            train_documents=train.count,
            valid_documents=valid.count,
            train_bytes=train.n_bytes,
            valid_bytes=valid.n_bytes,
            skipped=skipped,
        )


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Groups small enough to hold, large enough to vectorise."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _is_paths(data: Any) -> bool:
    return isinstance(data, (list, tuple)) and all(isinstance(p, (str, Path)) for p in data)


def _size(count: int) -> str:
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:,.0f} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"
