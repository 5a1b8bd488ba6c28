"""Bytes out of plain, gzip and zstd files, within declared limits."""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import zstandard

from inkstone.errors import DataError
from inkstone.text.config import TextConfig

SMALLEST_BOMB = 64 * 2**20  # a compressed file may always expand to this much


class _Limited(io.RawIOBase):
    """Counts what a decompressor gives out, and stops a bomb."""

    def __init__(self, source: Any, limit: int, name: str) -> None:
        self._source, self._left, self._limit, self._name = source, limit, limit, name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._source.read(min(len(buffer), 1 << 20))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"{self._name}: expands to more than {self._limit:,} bytes",
                fix="if it is sound, raise text.max_file_bytes or text.max_expansion",
            )
        buffer[: len(data)] = data
        return len(data)


@contextmanager
def open_bytes(path: Path, config: TextConfig) -> Iterator[BinaryIO]:
    """Open a file (or stdin, for "-") for reading, decompressed, behind the limits of `config`.

    Raises:
        DataError: Missing, unreadable, not a regular file, too large, truncated or a bomb.
    """
    if str(path) == "-":
        yield _buffered(sys.stdin.buffer, config.max_file_bytes, "<stdin>")
        return
    try:
        # a FIFO must not block us, and what we check must be what we read
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}", fix="check the path and its rights") from error
    with os.fdopen(descriptor, "rb") as raw:
        info = os.fstat(raw.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise DataError(f"{path}: not a regular file (a pipe, device or folder)")
        suffix, limit = path.suffix.lower(), config.max_file_bytes
        try:
            if suffix in (".gz", ".zst"):
                expanded = max(SMALLEST_BOMB, int(info.st_size * config.max_expansion))
                limit = min(limit, expanded)
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as inner:
                    yield _buffered(inner, limit, str(path))
            elif suffix == ".zst":
                with zstandard.ZstdDecompressor(max_window_size=2**27).stream_reader(
                    raw, read_across_frames=True
                ) as inner:
                    yield _buffered(inner, limit, str(path))
                    _check_complete(inner, raw, path)
            else:
                if info.st_size > limit:
                    raise DataError(
                        f"{path}: {info.st_size:,} bytes are more than text.max_file_bytes "
                        f"({limit:,})",
                        fix="raise the limit, or leave the file out",
                    )
                yield _buffered(raw, limit, str(path))
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DataError(
                f"{path}: damaged or truncated {suffix} file ({error})",
                fix='fetch it again, or skip damaged files with text.on_error="skip"',
            ) from error
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from error


def _buffered(source: Any, limit: int, name: str) -> BinaryIO:
    return io.BufferedReader(_Limited(source, limit, name), 1 << 18)  # type: ignore[return-value]


def _check_complete(reader: Any, raw: BinaryIO, path: Path) -> None:
    """zstd's reader ends quietly inside a frame; a whole file ends on a frame's border."""
    if reader.read(1):
        return  # the caller stopped early
    raw.seek(0)
    decompressor = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
    while data := raw.read(1 << 20):
        while data:
            decompressor.decompress(data)
            if not decompressor.eof:
                break
            data = decompressor.unused_data
            decompressor = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
            if not data:
                return
    raise DataError(
        f"{path}: truncated .zst file",
        fix='fetch it again, or skip damaged files with text.on_error="skip"',
    )
