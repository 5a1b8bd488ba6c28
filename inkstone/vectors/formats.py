"""Word vectors in the formats that others read: word2vec text and binary, GloVe text.

word2vec: a line "V D", then a word and D numbers a row, as text or as little-endian fp32 (a line
feed between rows may be there or not). GloVe: the same text without the first line, in which a word
may hold spaces (the published 840B vectors have ". . ."). Files are read as if they were hostile:
sizes are compared with the file's before memory is taken, and a wrong count, a number that is not
finite, a word that stands twice or text that is not UTF-8 is an error that names the row.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError, UsageError
from inkstone.vectors.table import Vectors

Format = Literal["word2vec", "word2vec-binary", "glove"]
FORMATS: tuple[Format, ...] = ("word2vec", "word2vec-binary", "glove")
MAX_WORD_BYTES = 1 << 12
MAX_D_MODEL = 1 << 16
MAX_NUMBER_BYTES = 40  # of one number in text
FLUSH_ROWS = 1 << 12
UNFIT = re.compile("[ \t\n\r\ud800-\udfff]")  # in a word, for any of the formats


def read(path: Path | str, format: Format | None = None) -> Vectors:
    """Open a file of word vectors.

    Args:
        path: The file.
        format: None looks: a first line of two whole numbers is word2vec's, whose rows are binary
            when the name ends in .bin or they are no text.

    Raises:
        DataError: It is not such a file, or damaged; names the row.
        UsageError: No such format.
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", fix=f"choose one of {', '.join(FORMATS)}")
    try:
        if not path.is_file():
            raise DataError(f"{path} is not a file")
        size = path.stat().st_size
        with open(path, "rb") as file:
            format = format or _guess(file, path)
            file.seek(0)
            reader = _Reader(file, path, size)
            words, matrix = {"glove": reader.glove, "word2vec": reader.text}.get(
                format, reader.binary
            )()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except MemoryError as error:
        raise DataError(f"{path}: its vectors do not fit in memory") from error
    return Vectors(tuple(words), matrix, info={"name": path.name})


def write(vectors: Vectors, path: Path | str, format: Format) -> None:
    """Write a new file; it appears whole or not at all.

    Raises:
        UsageError: The file exists, the format is unknown, or a word cannot stand in it.
        OSError: The disk is full or failing.
    """
    path = Path(path)
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}", fix=f"choose one of {', '.join(FORMATS)}")
    if path.exists():
        raise UsageError(f"{path} exists", fix="choose another name; nothing is overwritten")
    for word in vectors.words:
        if not word or UNFIT.search(word) or len(word) > MAX_WORD_BYTES // 4:
            raise UsageError(
                f"the word {word[:60]!r} cannot stand in a {format} file: it is empty, too long, "
                "holds white space or is no Unicode text",
                fix="the folder of the run keeps any word",
            )
    private = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(private, "xb") as file:
            for piece in _rows(vectors, format):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.link(private, path)  # unlike rename, this fails where somebody was faster
    except FileExistsError as error:
        raise UsageError(f"{path} exists", fix="choose another name") from error
    finally:
        private.unlink(missing_ok=True)


def _rows(vectors: Vectors, format: Format) -> Iterator[bytes]:
    if format != "glove":
        yield f"{len(vectors)} {vectors.d_model}\n".encode()
    for start in range(0, len(vectors), FLUSH_ROWS):
        part = vectors.matrix[start : start + FLUSH_ROWS].astype("<f4")
        words = vectors.words[start : start + FLUSH_ROWS]
        if format == "word2vec-binary":
            pairs = zip(words, part, strict=True)
            yield b"".join(w.encode("utf-8") + b" " + row.tobytes() + b"\n" for w, row in pairs)
        else:  # the shortest digits that give the same fp32 back
            lines = zip(words, part.astype(str), strict=True)
            yield "".join(f"{w} {' '.join(row)}\n" for w, row in lines).encode("utf-8")


def _guess(file: BinaryIO, path: Path) -> Format:
    first = file.readline(MAX_WORD_BYTES)
    if _header(first) is None:
        return "glove"
    if path.suffix == ".bin":
        return "word2vec-binary"
    fields = file.readline(1 << 16).split(b" ")
    text = len(fields) > 1 and all(map(_is_number, fields[1:4]))
    return "word2vec" if text else "word2vec-binary"


def _header(line: bytes) -> tuple[int, int] | None:
    fields = line.split()
    if len(fields) != 2 or not all(f.isdigit() and len(f) < 20 for f in fields):
        return None
    return int(fields[0]), int(fields[1])


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


class _Reader:
    """Reads one file; every error names it and the row."""

    def __init__(self, file: BinaryIO, path: Path, size: int) -> None:
        self.file, self.path, self.size = file, path, size
        self.row = 0
        self.seen: dict[str, int] = {}

    def text(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        rows, d_model = self._sizes(bytes_a_number=2)  # a space and a digit
        matrix = np.empty((rows, d_model), np.float32)
        for self.row in range(1, rows + 1):
            self._take(matrix, self._line(d_model))
        if self.file.read(1 << 10).strip():
            raise self._bad(f"the first line promises {rows:,} words, and there are more")
        return list(self.seen), matrix

    def glove(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        first = self.file.readline(MAX_WORD_BYTES + MAX_D_MODEL * MAX_NUMBER_BYTES)
        d_model = len(first.rstrip().split(b" ")) - 1
        if not 1 <= d_model <= MAX_D_MODEL:
            raise self._bad("it does not begin with a word and its numbers")
        self.file.seek(0)
        room = self.size // (2 * d_model + 2) + 1
        matrix = np.empty((min(room, 1 << 12), d_model), np.float32)
        while line := self._line(d_model, end_is_fine=True):
            self.row += 1
            if self.row > len(matrix):
                bigger = np.empty((min(room, 2 * len(matrix)), d_model), np.float32)
                bigger[: len(matrix)] = matrix
                matrix = bigger
            self._take(matrix, line, spaced=True)
        return list(self.seen), matrix[: self.row].copy()

    def binary(self) -> tuple[list[str], npt.NDArray[np.float32]]:
        rows, d_model = self._sizes(bytes_a_number=4)
        matrix = np.empty((rows, d_model), np.float32)
        for self.row in range(1, rows + 1):
            word = bytearray()
            while (byte := self.file.read(1)) != b" ":
                if not byte:
                    raise self._bad("the file ends in a word")
                word += byte
                if len(word) > MAX_WORD_BYTES:
                    raise self._bad("a word is longer than any word")
            numbers = self.file.read(4 * d_model)
            if len(numbers) != 4 * d_model:
                raise self._bad("the file ends in a vector")
            self._store(matrix, bytes(word).lstrip(b"\n"), np.frombuffer(numbers, "<f4"))
        if self.file.read(1 << 10).strip():
            raise self._bad(f"the first line promises {rows:,} words, and more follows")
        return list(self.seen), matrix

    def _sizes(self, bytes_a_number: int) -> tuple[int, int]:
        """V and D of the first line, which must fit into the file."""
        header = _header(self.file.readline(MAX_WORD_BYTES))
        if header is None:
            raise self._bad('the first line must be "WORDS NUMBERS"')
        rows, d_model = header
        if not 1 <= d_model <= MAX_D_MODEL or not rows:
            raise self._bad(f"{rows} words of {d_model} numbers are promised")
        if rows * (d_model * bytes_a_number + 1) > self.size:
            raise self._bad(f"{rows:,} words of {d_model} numbers need a larger file")
        return rows, d_model

    def _line(self, d_model: int, *, end_is_fine: bool = False) -> bytes:
        limit = MAX_WORD_BYTES + d_model * MAX_NUMBER_BYTES
        line = self.file.readline(limit)
        if not line and not end_is_fine:
            raise self._bad("the file ends before it")
        if len(line) == limit:
            raise self._bad("the line is too long")
        return line

    def _take(self, matrix: npt.NDArray[np.float32], line: bytes, *, spaced: bool = False) -> None:
        fields = line.rstrip().split(b" ")
        more = len(fields) - 1 - matrix.shape[1]
        if spaced and more > 0 and not any(map(_is_number, fields[1 : more + 1])):
            fields[: more + 1] = [b" ".join(fields[: more + 1])]
        if len(fields) != matrix.shape[1] + 1:
            raise self._bad(f"{len(fields) - 1} numbers instead of {matrix.shape[1]}")
        if max(map(len, fields[1:])) > MAX_NUMBER_BYTES:  # each would get the room of the longest
            raise self._bad("a number has too many digits")
        try:
            numbers = np.array(fields[1:], dtype="S").astype(np.float64)
        except ValueError as error:
            raise self._bad(str(error)) from error
        self._store(matrix, fields[0], numbers)

    def _store(self, matrix: npt.NDArray[np.float32], word: bytes, numbers: np.ndarray) -> None:
        try:
            name = word.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._bad(f"the word {word[:60]!r} is not UTF-8") from error
        if not name:
            raise self._bad("the word is empty")
        if name in self.seen:
            raise self._bad(f"the word {name[:60]!r} stands in row {self.seen[name]} already")
        with np.errstate(over="ignore"):
            matrix[self.row - 1] = numbers
        if not np.isfinite(matrix[self.row - 1]).all():
            raise self._bad(f"a number of the word {name[:60]!r} is not finite")
        self.seen[name] = self.row

    def _bad(self, reason: str) -> DataError:
        where = f"{self.path}, row {self.row}" if self.row else str(self.path)
        return DataError(
            f"{where}: {reason}",
            fix="it is damaged, or in another format; a run's folder is opened by its own name",
        )
