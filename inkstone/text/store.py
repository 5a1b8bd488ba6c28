"""Cleaned documents on disk, memory-mapped.

A folder of `documents.bin` (the texts in UTF-8, one after another), `offsets.bin` (where each one
begins, and the end of the last; uint64, little endian), `origins.bin` (for each one the number of
its source and its number in there; uint64 pairs), `sources.jsonl` (the names of the sources) and
`store.json` (counts).
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError
from inkstone.files import atomic_folder
from inkstone.text.document import Document

Utf8 = bytes  # its own name: `DocumentStore.bytes` hides the type in that class
VERSION = 1
_RELEASE_BYTES = 1 << 26  # mapped pages are given back after so much reading
_FLUSH = 1 << 16
_BUFFER = 1 << 18


class DocumentStore:
    """Read-only sequence of texts; opening it reads a few bytes, whatever its size.

    Any number of processes and threads may read one store. Resident memory stays flat.

    Args:
        folder: Where `write_store` or `clean` wrote.

    Raises:
        DataError: A file is missing, truncated or does not fit the others.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        try:
            raw = (self.folder / "store.json").read_bytes()[: 1 << 16]
            facts = json.loads(raw)
            if not isinstance(facts, dict) or facts.get("version") != VERSION:
                raise ValueError(f"store.json is not of version {VERSION}")
            count, size = facts.get("documents"), facts.get("bytes")
            if type(count) is not int or type(size) is not int or min(count, size) < 0:
                raise ValueError("store.json holds impossible counts")
            self._count, self._size = count, size
            self._expect("documents.bin", self._size)
            self._expect("offsets.bin", 8 * (count + 1))
            self._expect("origins.bin", 16 * count)
            offsets = np.memmap(self.folder / "offsets.bin", "<u8", "r")
            self.offsets: npt.NDArray[np.uint64] = offsets.view(np.ndarray)  # faster to index
            if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != self._size:
                raise ValueError("offsets.bin does not fit documents.bin")
            self._data = self._map("documents.bin")
        except (OSError, ValueError, RecursionError) as error:
            raise self._damaged(error) from error
        self._read = 0
        self._sources: list[str] | None = None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> str:
        try:
            return self.bytes(number).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"document {number} is not valid UTF-8") from error

    def __iter__(self) -> Iterator[str]:
        return (self[number] for number in range(len(self)))

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return self._size

    def bytes(self, number: int) -> Utf8:
        """UTF-8 of one document.

        Raises:
            IndexError: There is no such document.
            DataError: The offsets are damaged.
        """
        if number < 0:
            number += self._count
        if not 0 <= number < self._count:
            raise IndexError(f"document {number} of {self._count}")
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        if not start <= end <= self._size:
            raise self._damaged(f"the offsets of document {number} are impossible")
        self._read += end - start
        if self._read > _RELEASE_BYTES and isinstance(self._data, mmap.mmap):
            self._read = 0
            self._data.madvise(mmap.MADV_DONTNEED)
        return self._data[start:end]

    def records(self, numbers: npt.NDArray[np.int64]) -> Iterator[tuple[Utf8, str, int]]:
        """Text (UTF-8), source and index of some documents in ascending order, streaming."""
        if not len(numbers):
            return  # an empty file cannot be mapped
        origins = np.memmap(self.folder / "origins.bin", "<u8", "r").reshape(-1, 2)
        chosen, at, name = np.asarray(numbers, np.int64), -1, ""
        with open(self.folder / "sources.jsonl", encoding="utf-8") as names:
            for block in np.split(chosen, range(_FLUSH, len(chosen), _FLUSH)):
                for number, (source, index) in zip(
                    block.tolist(), origins[block].tolist(), strict=True
                ):
                    while at < source:
                        at, name = at + 1, json.loads(next(names))
                    yield self.bytes(number), name, index

    def document(self, number: int) -> Document:
        """One document with its origin."""
        text = self[number]
        if self._sources is None:
            self._sources = self._read_sources()
        with open(self.folder / "origins.bin", "rb") as file:
            file.seek(16 * (number % self._count))
            source, index = np.frombuffer(file.read(16), "<u8").tolist()
        if source >= len(self._sources):
            raise self._damaged(f"document {number} has no source")
        return Document(text, self._sources[source], index)

    def _read_sources(self) -> list[str]:
        try:
            with open(self.folder / "sources.jsonl", encoding="utf-8") as file:
                return [str(json.loads(line)) for line in file]
        except (OSError, ValueError) as error:
            raise self._damaged(error) from error

    def _expect(self, name: str, size: int) -> None:
        found = (self.folder / name).stat().st_size
        if found != size:
            raise ValueError(f"{name} has {found:,} bytes, but {size:,} belong there")

    def _map(self, name: str) -> mmap.mmap | Utf8:
        if self._size == 0:
            return b""
        with open(self.folder / name, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def _damaged(self, reason: object) -> DataError:
        return DataError(
            f"{self.folder} is not a sound document store: {reason}",
            fix="delete the folder and clean the text again",
        )


class StoreWriter:
    """Appends documents to a store in an existing, private folder; use it as a context."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        names = ("documents.bin", "offsets.bin", "origins.bin", "sources.jsonl")
        self._files = [open(folder / name, "wb", buffering=_BUFFER) for name in names]  # noqa: SIM115
        self._data, self._offsets, self._origins, self._sources = self._files
        self._ends, self._places = array("Q", [0]), array("Q")
        self._source: str | None = None
        self._source_count = 0
        self.n_documents = self.n_bytes = 0

    def __enter__(self) -> StoreWriter:
        return self

    def add(self, data: bytes, source: str, index: int) -> None:
        """Append one document; those of one source come one after another."""
        if source != self._source:
            self._source, self._source_count = source, self._source_count + 1
            self._sources.write(json.dumps(source).encode() + b"\n")
        self._data.write(data)
        self.n_bytes += len(data)
        self.n_documents += 1
        self._ends.append(self.n_bytes)
        self._places.extend((self._source_count - 1, index))
        if len(self._ends) >= _FLUSH:
            self._flush()

    def __exit__(self, kind: object, *_: Any) -> None:
        if kind is None:
            self.finish()
        for file in self._files:
            file.close()

    def finish(self) -> None:
        """Nothing more is added; the store is whole."""
        if self._files[0].closed:
            return
        self._flush()
        for file in self._files:
            file.close()
        facts = {"version": VERSION, "documents": self.n_documents, "bytes": self.n_bytes}
        (self._folder / "store.json").write_text(json.dumps(facts) + "\n", encoding="ascii")

    def _flush(self) -> None:
        for file, numbers in ((self._offsets, self._ends), (self._origins, self._places)):
            file.write(np.array(numbers, "<u8").tobytes())
            del numbers[:]


def write_store(folder: Path, documents: Iterable[Document]) -> DocumentStore:
    """Write documents as a store that appears whole or not at all."""
    with atomic_folder(folder) as private, StoreWriter(private) as writer:
        for document in documents:
            writer.add(document.text.encode("utf-8"), document.source, document.index)
    return DocumentStore(folder)
