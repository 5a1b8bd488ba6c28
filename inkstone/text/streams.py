"""Bytes out of plain, gzip and zstd files, within declared limits."""

from __future__ import annotations

import codecs
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
SKIP = 'fetch it again, or skip damaged files with text.on_error="skip"'
_BLOCK = 1 << 18
_ZSTD_STEP = 1 << 10  # a block of 4 bytes can hold 128 kB: this much input gives 32 MB at most
_ZSTD_WINDOW = 1 << 27
_BOMS = (  # UTF-32's begins like UTF-16's, so it comes first
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def display(path: Path) -> str:
    """A path as printable UTF-8 for messages and records, whatever bytes its name has."""
    if str(path) == "-":
        return "<stdin>"
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file, and nothing else, for reading without a buffer.

    Raises:
        DataError: Missing, unreadable, a pipe, a device or a folder.
    """
    special = DataError(
        f"{display(path)}: not a regular file (a pipe, device or folder)",
        fix='give regular files; a pipe is read from stdin, as "-"',
    )
    try:
        # Opening can block (a pipe) or do harm (a device), so look first. What was looked at may
        # be another thing by the time it is open, so look again.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise special
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{display(path)}: {reason}", fix="check the path and its rights"
        ) from error
    file = os.fdopen(descriptor, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise special
    return file  # type: ignore[return-value]


@contextmanager
def open_bytes(path: Path, config: TextConfig) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Open a file (stdin for "-"): its decompressed bytes behind the limits, and the raw file.

    Raises:
        DataError: Missing, unreadable, not a regular file, too large, truncated, a bomb, or
            changed while it was read.
    """
    if str(path) == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise DataError("stdin is closed", fix="pipe text into the command")
        yield _buffered(sys.stdin.buffer, config.max_file_bytes, "<stdin>"), sys.stdin.buffer
        return
    with open_file(path) as raw:
        before = os.fstat(raw.fileno())
        yield _decompressed(raw, path, before.st_size, config), raw
        after = os.fstat(raw.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise DataError(
                f"{display(path)}: changed while it was read",
                fix="wait until it is written completely, and start again",
            )


def expansion_limit(size: int, config: TextConfig) -> int:
    """Bytes that a compressed file of `size` bytes may expand to."""
    return min(config.max_file_bytes, max(SMALLEST_BOMB, int(size * config.max_expansion)))


def utf8(stream: BinaryIO, name: str) -> BinaryIO:
    """The stream as UTF-8 without a byte-order mark; UTF-16 and UTF-32 are known by theirs.

    Raises:
        DataError: It is no text: every second byte or so of its beginning is zero.
    """
    head = stream.read(4096)
    for mark, encoding in _BOMS:
        if head.startswith(mark):
            source = _Chained(head[len(mark) :], stream)
            if encoding == "utf-8":
                return io.BufferedReader(source, _BLOCK)
            return io.BufferedReader(_Transcoded(source, encoding, name), _BLOCK)
    if head.count(0) * 8 > len(head):
        raise DataError(
            f"{name}: holds mostly zero bytes: UTF-16 without a byte-order mark, or no text at all",
            fix="convert it: iconv -f UTF-16LE -t UTF-8 FILE > FILE.utf8.txt",
        )
    return io.BufferedReader(_Chained(head, stream), _BLOCK)


def _decompressed(raw: BinaryIO, path: Path, size: int, config: TextConfig) -> BinaryIO:
    suffix, name = path.suffix.lower(), display(path)
    if suffix == ".gz":
        return _buffered(gzip.GzipFile(fileobj=raw), expansion_limit(size, config), name)
    if suffix == ".zst":
        return _buffered(_Zstd(raw), expansion_limit(size, config), name)
    if size > config.max_file_bytes:
        raise _too_large(name, config.max_file_bytes)
    return _buffered(raw, config.max_file_bytes, name)


def _buffered(source: Any, limit: int, name: str) -> BinaryIO:
    return io.BufferedReader(_Limited(source, limit, name), _BLOCK)


def _too_large(name: str, limit: int) -> DataError:
    return DataError(
        f"{name}: holds more than {limit:,} bytes",
        fix="if it is sound, raise text.max_file_bytes (or text.max_expansion, for a compressed "
        "file); else leave it out",
    )


class _Raw(io.RawIOBase):
    """A readable stream made of `_next`, which gives at most `size` bytes, or none at the end."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> bytes:
        raise NotImplementedError


class _Limited(_Raw):
    """Counts what comes out, stops a bomb, and names the file in every error."""

    def __init__(self, source: Any, limit: int, name: str) -> None:
        self._source, self._limit, self._name = source, limit, name
        self._left = limit

    def _next(self, size: int) -> bytes:
        try:
            data: bytes = self._source.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise DataError(
                f"{self._name}: damaged or truncated file ({error})", fix=SKIP
            ) from error
        except OSError as error:
            raise DataError(f"{self._name}: {error.strerror or error}", fix=SKIP) from error
        self._left -= len(data)
        if self._left < 0:
            raise _too_large(self._name, self._limit)
        return data


class _Zstd:
    """zstd frames one after another; unlike the library's reader it notices a missing end."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw, self._input, self._output = raw, memoryview(b""), memoryview(b"")
        self._frame = self._new_frame()
        self._inside = False

    def read(self, size: int) -> bytes:
        while not self._output:
            if not self._input:
                self._input = memoryview(self._raw.read(_BLOCK))
                if not self._input:
                    if self._inside:
                        raise EOFError("the last zstd frame has no end")
                    return b""
            step, self._input = self._input[:_ZSTD_STEP], self._input[_ZSTD_STEP:]
            self._output = memoryview(self._expand(bytes(step)))
        out, self._output = self._output[:size], self._output[size:]
        return bytes(out)

    def _expand(self, data: bytes) -> bytes:
        parts = []
        while data:
            parts.append(self._frame.decompress(data))
            ended = self._frame.eof
            self._inside = not ended
            data = self._frame.unused_data if ended else b""
            if ended:
                self._frame = self._new_frame()
        return b"".join(parts)

    @staticmethod
    def _new_frame() -> Any:
        return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


class _Chained(_Raw):
    """A stream whose beginning was read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = head, rest

    def _next(self, size: int) -> bytes:
        if self._head:
            out, self._head = self._head[:size], self._head[size:]
            return out
        return self._rest.read(size)


class _Transcoded(_Raw):
    """Another encoding as UTF-8."""

    def __init__(self, source: _Raw, encoding: str, name: str) -> None:
        self._source, self._encoding, self._name = source, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._ready, self._ended = b"", False

    def _next(self, size: int) -> bytes:
        while not self._ready and not self._ended:
            data = self._source._next(_BLOCK)
            self._ended = not data
            try:
                self._ready = self._decoder.decode(data, final=self._ended).encode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self._name}: not valid {self._encoding.upper()} ({error.reason}), as its "
                    "byte-order mark says",
                    fix=SKIP,
                ) from error
        out, self._ready = self._ready[:size], self._ready[size:]
        return out
