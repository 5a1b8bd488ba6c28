"""The files of an index: passages, the counts of their words, and their vectors.

    index.json      what it is of: model, settings, and of every file its hash and passages
    passages.jsonl  one passage a line, in the order of the files
    offsets.npy     [N + 1] int64, where each line begins
    vectors.npy     [N, D] float16, rows of length 1; absent without a model
    terms.txt, starts.npy, texts.npy, counts.npy, lengths.npy   as `text.bm25.BM25` holds them

Arrays are mapped into memory when they are used. A folder is replaced whole, with one rename.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.errors import CheckpointError
from inkstone.files import atomic_folder, read_json, recover, write_json
from inkstone.text.bm25 import BM25

KIND, FORMAT = "inkstone search index", 1
ABOUT, LINES = "index.json", "passages.jsonl"
ARRAYS = {"starts": np.int64, "texts": np.int32, "counts": np.int32, "lengths": np.int32}
MAX_ABOUT_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class File:
    """One indexed file.

    Attributes:
        name: Path as people see it, below the folder that was named.
        size: In bytes.
        mtime_ns: When it was last written.
        ctime_ns: When that, or its rights, or its name, last changed.
        sha256: Of its bytes.
        passages: How many it has.
    """

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    sha256: str
    passages: int

    @property
    def stamp(self) -> tuple[int, int, int]:
        """While this is the same, the bytes are taken to be."""
        return self.size, self.mtime_ns, self.ctime_ns


@dataclass(frozen=True)
class Entry:
    """A file with all that the index keeps of it.

    Attributes:
        file: Which.
        lines: Its passages, each a JSON object in bytes.
        vectors: [passages, D]; None without a model.
    """

    file: File
    lines: Sequence[bytes]
    vectors: npt.NDArray[np.float16] | None


@dataclass(frozen=True)
class Snapshot:
    """An index as it lies on the disk.

    Attributes:
        settings: What it depends on besides the files.
        files: In their order.
        ends: [files] int64: passages up to and with each file.
        counts: Of the words.
        vectors: [N, D] float16; None without a model.
    """

    settings: dict[str, Any]
    files: list[File]
    ends: npt.NDArray[np.int64]
    counts: BM25
    vectors: npt.NDArray[np.float16] | None
    _bytes: npt.NDArray[np.uint8]
    _offsets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def line(self, number: int) -> bytes:
        """A passage as it was written."""
        return self._bytes[self._offsets[number] : self._offsets[number + 1]].tobytes()

    def passage(self, number: int) -> tuple[File, dict[str, Any]]:
        """A passage, and the file that it is of.

        Raises:
            CheckpointError: The index is damaged.
        """
        file = self.files[int(np.searchsorted(self.ends, number, side="right"))]
        try:
            fields = json.loads(self.line(number))
            wanted = {"text": str, "start": int, "end": int, "record": int, "line": int}
            if all(type(fields[name]) is kind for name, kind in wanted.items()):
                return file, fields
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise CheckpointError(f"{LINES}: passage {number} is malformed", fix="delete the index")

    def entry(self, place: int) -> Entry:
        """All that is kept of one file, by its place in `files`."""
        first, last = int(self.ends[place]) - self.files[place].passages, int(self.ends[place])
        vectors = None if self.vectors is None else self.vectors[first:last]
        return Entry(self.files[place], [self.line(i) for i in range(first, last)], vectors)


def is_index(folder: Path) -> bool:
    """Whether a folder holds an index, sound or damaged."""
    recover(folder)
    try:
        return read_json(folder / ABOUT, MAX_ABOUT_BYTES).get("kind") == KIND
    except CheckpointError:
        return False


def write(folder: Path, settings: dict[str, Any], entries: Sequence[Entry]) -> None:
    """Put an index in the place of what was there.

    Raises:
        CheckpointError: The disk is full or failing.
    """
    lines = [line for entry in entries for line in entry.lines]
    counts = BM25.of(json.loads(line)["text"] for line in lines)
    with atomic_folder(folder) as out:
        (out / LINES).write_bytes(b"".join(lines))
        np.save(out / "offsets.npy", np.cumsum([0, *map(len, lines)], dtype=np.int64))
        (out / "terms.txt").write_bytes("\n".join(counts.numbers).encode("utf-8"))
        for name in ARRAYS:
            np.save(out / f"{name}.npy", getattr(counts, name))
        parts = [x.vectors for x in entries if x.vectors is not None and len(x.vectors)]
        if parts:
            np.save(out / "vectors.npy", np.concatenate(parts))
        files = [asdict(entry.file) for entry in entries]
        about = {"kind": KIND, "format": FORMAT, "settings": settings, "files": files}
        write_json(out / ABOUT, about)


def read(folder: Path) -> Snapshot:
    """Open an index as if somebody hostile had written it.

    Raises:
        CheckpointError: Something in it is missing, malformed, or does not fit the rest.
    """
    recover(folder)
    about = read_json(folder / ABOUT, MAX_ABOUT_BYTES)
    if about.get("kind") != KIND or about.get("format") != FORMAT:
        raise _damaged(folder, "it is of another format")
    try:
        files = [File(**row) for row in about["files"]]
        settings = dict(about["settings"])
        sound = all(type(x.name) is str and type(x.passages) is int and x.passages >= 0
                    and all(type(n) is int for n in x.stamp) for x in files)  # fmt: skip
        text = np.memmap(folder / LINES, np.uint8, "r")
        terms = (folder / "terms.txt").read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, str(error)) from error
    offsets = _array(folder, "offsets", np.int64)
    arrays = {name: _array(folder, name, kind) for name, kind in ARRAYS.items()}
    has_vectors = (folder / "vectors.npy").is_file()
    vectors = _array(folder, "vectors", np.float16, ndim=2) if has_vectors else None
    ends = np.cumsum([file.passages for file in files], dtype=np.int64) if sound else offsets[:0]
    counts = BM25({term: i for i, term in enumerate(terms)}, **arrays)
    n = len(offsets) - 1
    fits = (
        sound and len(ends) > 0 and ends[-1] == n == len(counts)
        and (vectors is None or len(vectors) == n)
        and _ascending(offsets, len(text)) and _ascending(counts.starts, len(counts.texts))
        and len(counts.starts) == len(counts.numbers) + 1
        and len(counts.texts) == len(counts.counts)
        and (not len(counts.texts) or 0 <= counts.texts.min() <= counts.texts.max() < n)
    )  # fmt: skip
    if not fits:
        raise _damaged(folder, "its parts do not fit together")
    return Snapshot(settings, files, ends, counts, vectors, text, offsets)


def _ascending(numbers: npt.NDArray[np.int64], last: int) -> bool:
    steps = bool((numbers[1:] >= numbers[:-1]).all())
    return len(numbers) > 0 and steps and int(numbers[0]) == 0 and int(numbers[-1]) == last


def _array(folder: Path, name: str, kind: Any, ndim: int = 1) -> npt.NDArray[Any]:
    try:
        array = np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, f"{name}.npy: {error}") from error
    if array.dtype != kind or array.ndim != ndim:
        raise _damaged(folder, f"{name}.npy holds something else")
    result: npt.NDArray[Any] = array
    return result


def _damaged(folder: Path, why: str) -> CheckpointError:
    return CheckpointError(f"the index {folder} is damaged: {why[:200]}", fix="delete it")
