"""Cleaned documents on disk, memory-mapped: `documents.bin` (UTF-8) and `offsets.bin` (uint64)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError

FLUSH_BYTES = 1 << 20


class DocumentStore:
    """Read-only sequence of texts; opening it reads nothing but sizes.

    Args:
        folder: Where a `StoreWriter` wrote.

    Raises:
        DataError: A file is missing, truncated or inconsistent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        try:
            self._size = (self.folder / "documents.bin").stat().st_size
            index = self.folder / "offsets.bin"
            count = index.stat().st_size
            if count < 8 or count % 8:
                raise ValueError("offsets.bin has an impossible size")
            self.offsets: npt.NDArray[np.uint64] = np.memmap(index, "<u8", "r")
            if int(self.offsets[0]) != 0 or int(self.offsets[-1]) != self._size:
                raise ValueError("offsets.bin does not fit documents.bin")
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.folder} is not a sound document store: {error}",
                fix="delete the folder; it is made again from the files",
            ) from error

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        return self.bytes(number).decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def bytes(self, number: int) -> bytes:
        """UTF-8 of one document."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = int(self.offsets[number]), int(self.offsets[number + 1])
        if not 0 <= start <= end <= self._size:
            raise DataError(f"{self.folder}: offsets of document {number} are damaged")
        return self._data[start:end].tobytes()

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of all documents."""
        return self._size

    @functools.cached_property
    def _data(self) -> npt.NDArray[np.uint8]:
        if self._size == 0:
            return np.empty(0, np.uint8)
        return np.memmap(self.folder / "documents.bin", np.uint8, "r")


class StoreWriter:
    """Appends texts; what was written can be read back at once, and the last can be taken back.

    Args:
        folder: An existing, private folder.
    """

    def __init__(self, folder: Path) -> None:
        self._data = open(folder / "documents.bin", "w+b")  # noqa: SIM115 - closed in close
        self._index = open(folder / "offsets.bin", "w+b")  # noqa: SIM115
        self._index.write(bytes(8))
        self._end = 0
        self.count = 0

    def append(self, text: str) -> None:
        """Add one document."""
        data = text.encode("utf-8")
        self._data.write(data)
        self._end += len(data)
        self._index.write(self._end.to_bytes(8, "little"))
        self.count += 1

    def __getitem__(self, number: int) -> str:
        start, end = self._span(number)
        self._data.seek(start)
        text = self._data.read(end - start).decode("utf-8")
        self._data.seek(0, 2)
        return text

    def pop(self) -> str:
        """Take the last document back."""
        text = self[self.count - 1]
        start, _ = self._span(self.count - 1)
        self._data.truncate(start)
        self._data.seek(0, 2)
        self._index.truncate(8 * self.count)
        self._index.seek(0, 2)
        self._end, self.count = start, self.count - 1
        return text

    @property
    def n_bytes(self) -> int:
        return self._end

    def close(self) -> None:
        """Write what is buffered; the store is whole afterwards."""
        self._data.close()
        self._index.close()

    def _span(self, number: int) -> tuple[int, int]:
        self._index.seek(8 * number)
        raw = self._index.read(16)
        self._index.seek(0, 2)
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")
