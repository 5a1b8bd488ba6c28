"""Search in a folder of documents: by words, by meaning, and by both.

Documents are cut into passages of about a hundred words. BM25 ranks them by the words of the query
(`text.bm25`), cosine by what an encoder makes of them, and the two lists are joined by their places
alone (Cormack et al. 2009, "Reciprocal Rank Fusion"):

    score = Σ over lists: 1 / (60 + place)

The index is kept on the disk. When it is opened again, files that are as they were keep their
passages and vectors; only what is new or changed is read and embedded.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import platformdirs

from inkstone.errors import CheckpointError, DataError, UsageError
from inkstone.files import sha256
from inkstone.inference import index_files
from inkstone.inference.embed import Embedder
from inkstone.inference.index_files import Entry, File, Snapshot
from inkstone.text.bm25 import TERM, pieces, terms
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN, Data, find_files, kind_of
from inkstone.text.log import ReadLog
from inkstone.text.normalize import normalize
from inkstone.text.passages import PASSAGE_WORDS, Span, spans
from inkstone.text.readers import read_files
from inkstone.text.streams import display

By = Literal["both", "words", "meaning"]
Progress = Callable[[int, int], None]
"""(passages embedded, passages to embed)."""
FUSION = 60  # of Cormack et al. 2009
DEEP = 100  # places of each list that are joined, at least
SAVE_S = 60.0  # so much of embedding is lost at most
EMBEDDED_AT_ONCE = 512  # passages, of small files together
SCANNED_AT_ONCE = 1 << 16  # vectors
_MARKUP = {".html", ".htm"}  # whose text has other lines than the file


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document, and where it stands.

    Attributes:
        text: Its characters, as they stand in the document.
        source: The file: its path below the folder that was named.
        start: Its first character, counted in the text of the document from 0.
        end: Behind its last one.
        score: Higher is better; comparable within one answer.
        record: Of a table, the row that is the document, from 1; 0: the document is the file.
        line: Of the document, the line where it begins, from 1; 0: lines say nothing.
    """

    text: str
    source: str
    start: int
    end: int
    score: float
    record: int = 0
    line: int = 0

    @property
    def place(self) -> str:
        """For people: "rivers.txt, line 12"."""
        if self.record:
            return f"{self.source}, record {self.record}"
        return f"{self.source}, " + (f"line {self.line}" if self.line else f"at {self.start}")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Index:
    """Passages of documents, ready to be searched.

    Attributes:
        snapshot: What is on the disk.
        embedder: Makes vectors of queries; None: only words are searched.
        fresh: How many passages were read anew when it was opened.
        notes: What was passed over.
    """

    snapshot: Snapshot
    embedder: Embedder | None = None
    fresh: int = 0
    notes: Sequence[str] = field(default_factory=tuple)

    @classmethod
    def open(
        cls,
        docs: Data,
        embedder: Embedder | None = None,
        *,
        folder: str | Path | None = None,
        text_field: str = "text",
        progress: Progress | None = None,
    ) -> Index:
        """Bring the index of some documents up to date, and open it.

        Args:
            docs: A folder, file or pattern, or a list of those.
            embedder: None counts words alone.
            folder: Where the index is kept: a new or empty folder, or that of an index. None: in
                the user's cache.
            text_field: Column that holds the text in .jsonl, .csv, .tsv and .parquet.
            progress: Told how far embedding has come.

        Raises:
            DataError: The documents cannot be read, or hold no text.
            UsageError: The folder holds something else.
            CheckpointError: The index cannot be written.
        """
        parts = [docs] if isinstance(docs, str | Path) else list(docs)
        settings = {
            "model": None if embedder is None else embedder.fingerprint,
            "field": text_field, "words": PASSAGE_WORDS,
        }  # fmt: skip
        where = _default_folder(parts, settings) if folder is None else Path(folder)
        strange = where.exists() and not index_files.is_index(where)
        if strange and (not where.is_dir() or any(where.iterdir())):
            raise UsageError(f"{where} holds no index", fix="name a new folder")
        builder = _Builder(where, settings, embedder, TextConfig(
            field=text_field, split_on="file", on_error="skip"), progress)  # fmt: skip
        snapshot = builder.bring_up_to_date(parts)
        return cls(snapshot, embedder, builder.fresh, tuple(builder.notes()))

    def __len__(self) -> int:
        return len(self.snapshot)

    def search(self, query: str, top: int = 5, *, by: By = "both") -> list[Passage]:
        """The best passages, best first.

        Args:
            query: A question, or words.
            top: How many at most.
            by: "words" is BM25, whose score it then is; "meaning" is the cosine; "both" joins them
                where there is a model, and is "words" where there is none.

        Raises:
            UsageError: A setting is out of range, or "meaning" without a model.
        """
        if top < 1 or by not in ("both", "words", "meaning"):
            raise UsageError(f"top={top}, by={by!r}", fix="top from 1; by both, words or meaning")
        if by == "meaning" and self.embedder is None:
            raise UsageError("there is no model to search by meaning with", fix="name an encoder")
        deep = max(DEEP, top)
        lists = []
        if by != "meaning":
            lists.append(_best(self.snapshot.counts.scores(query), deep, above=0.0))
        if by != "words" and self.embedder is not None:
            lists.append(_best(self._cosines(query), deep))
        found = lists[0] if len(lists) == 1 else fuse(lists)
        return [self._passage(number, score) for number, score in found[:top]]

    def _cosines(self, query: str) -> npt.NDArray[np.float64]:
        assert self.embedder is not None and self.snapshot.vectors is not None
        asked = _unit(self.embedder([normalize(query)]))[0]
        vectors, n = self.snapshot.vectors, len(self)
        parts = [
            vectors[i : i + SCANNED_AT_ONCE].astype(np.float32) @ asked
            for i in range(0, n, SCANNED_AT_ONCE)
        ]
        return np.concatenate(parts).astype(np.float64)

    def _passage(self, number: int, score: float) -> Passage:
        file, held = self.snapshot.passage(number)
        return Passage(
            held["text"], file.name, held["start"], held["end"], score, held["record"], held["line"]
        )


def fuse(lists: Sequence[Sequence[tuple[int, float]]]) -> list[tuple[int, float]]:
    """Lists of (number, score), best first, as one: by places alone (Cormack et al. 2009)."""
    total: dict[int, float] = {}
    for found in lists:
        for place, (number, _) in enumerate(found, 1):
            total[number] = total.get(number, 0.0) + 1 / (FUSION + place)
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def marks(text: str, query: str) -> list[Span]:
    """Where words of a query stand in a text, in order; neighbours and overlaps as one."""
    wanted, found = set(terms(query)), list[Span]()
    for match in TERM.finditer(text):
        for i, piece in enumerate(pieces(match.group().casefold())):
            if piece not in wanted:
                continue
            whole = piece == match.group().casefold()
            start, end = match.span() if whole else (match.start() + i, match.start() + i + 2)
            if found and start <= found[-1][1]:
                start = found.pop()[0]
            found.append((start, end))
    return found


class _Builder:
    """Makes the index on the disk one of the documents as they are now."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], embedder: Embedder | None,
        config: TextConfig, progress: Progress | None,
    ) -> None:  # fmt: skip
        self.folder, self.settings, self.embedder = folder, settings, embedder
        self.config, self.progress = config, progress
        self.log = ReadLog(config)
        self.fresh = 0

    def bring_up_to_date(self, parts: Sequence[str | Path]) -> Snapshot:
        old = self._old()
        inside = self.folder.resolve()
        found = find_files(parts, log=self.log)
        paths = [path for path in found if not path.resolve().is_relative_to(inside)]
        if STDIN in paths:
            raise UsageError("documents on stdin cannot be cited", fix="name a file or a folder")
        root = Path(parts[0]) if len(parts) == 1 and Path(parts[0]).is_dir() else None
        named = [(path, _name(path, root)) for path in paths]
        if old is not None and self._unchanged(old, named):
            return old
        entries = self._entries(old, named)
        if not sum(entry.file.passages for entry in entries):
            raise DataError("the documents hold no text", fix="; ".join(self.notes()) or None)
        index_files.write(self.folder, self.settings, entries)
        return index_files.read(self.folder)

    def notes(self) -> Iterator[str]:
        """What was passed over, for people."""
        for kind, count in self.log.skipped.items():
            if kind != "files of other kinds":
                yield f"{count:,} {kind} passed over, such as {self.log.examples[0]}"

    def _old(self) -> Snapshot | None:
        if not index_files.is_index(self.folder):
            return None
        try:
            found = index_files.read(self.folder)
        except CheckpointError:
            return None  # it is made again
        whole = (found.vectors is None) == (self.embedder is None)
        return found if whole and found.settings == self.settings else None

    def _unchanged(self, old: Snapshot, named: Sequence[tuple[Path, str]]) -> bool:
        now = [(name, *_stamp(path)) for path, name in named]
        return now == [(file.name, *file.stamp) for file in old.files]

    def _entries(self, old: Snapshot | None, named: Sequence[tuple[Path, str]]) -> list[Entry]:
        """What to keep of each file: read and embedded where it is new."""
        files = [] if old is None else old.files
        by_name = {file.name: place for place, file in enumerate(files)}
        by_hash = {(file.sha256, kind_of(Path(file.name))): i for i, file in enumerate(files)}
        entries: list[Entry | None] = []
        waiting: list[int] = []
        for path, name in named:
            stamp, place = _stamp(path), by_name.get(name)
            digest = ""
            if place is None or files[place].stamp != stamp:
                digest = _hash(path)
                place = by_hash.get((digest, kind_of(path)))
            if place is not None:
                assert old is not None
                kept = old.entry(place)
                file = File(name, *stamp, kept.file.sha256, len(kept.lines))
                entries.append(Entry(file, kept.lines, kept.vectors))
                continue
            lines = list(self._read(path))
            self.fresh += len(lines)
            waiting.append(len(entries))
            entries.append(Entry(File(name, *stamp, digest, len(lines)), lines, None))
        if self.embedder is not None:
            self._embed(entries, waiting)
        return [entry for entry in entries if entry is not None]

    def _embed(self, entries: list[Entry | None], waiting: Sequence[int]) -> None:
        """Vectors of what is new; what is done is written now and then."""
        assert self.embedder is not None
        fresh = [(place, entry) for place in waiting if (entry := entries[place]) is not None]
        for place in waiting:
            entries[place] = None  # not to be written before it has its vectors
        ends = np.cumsum([0, *(len(entry.lines) for _, entry in fresh)]).tolist()
        done, saved_at = 0, time.monotonic()
        while done < len(fresh):
            stop = done + 1
            while stop < len(fresh) and ends[stop + 1] - ends[done] <= EMBEDDED_AT_ONCE:
                stop += 1

            def told(count: int, before: int = ends[done]) -> None:
                if self.progress is not None:
                    self.progress(before + count, ends[-1])

            group = fresh[done:stop]
            lines = [line for _, entry in group for line in entry.lines]
            texts = [normalize(json.loads(line)["text"]) for line in lines]
            vectors = _unit(self.embedder(texts, told)).astype(np.float16)
            for number, (place, entry) in enumerate(group, done):
                own = vectors[ends[number] - ends[done] : ends[number + 1] - ends[done]]
                entries[place] = Entry(entry.file, entry.lines, own)
            done = stop
            if done < len(fresh) and time.monotonic() - saved_at > SAVE_S:
                ready = [entry for entry in entries if entry is not None]
                index_files.write(self.folder, self.settings, ready)
                saved_at = time.monotonic()

    def _read(self, path: Path) -> Iterator[bytes]:
        lined = kind_of(path) not in _MARKUP
        for document in read_files([path], config=self.config, log=self.log):
            text, line, before = document.text, 1, 0
            for start, end in spans(text):
                line, before = line + text.count("\n", before, start), start
                row = {"text": text[start:end], "start": start, "end": end,
                       "record": document.index, "line": line if lined else 0}  # fmt: skip
                yield json.dumps(row).encode("ascii") + b"\n"


def _best(
    scores: npt.NDArray[np.float64], top: int, above: float = -np.inf
) -> list[tuple[int, float]]:
    """The highest scores with their numbers, of equal ones the first."""
    if top < len(scores):
        least = np.partition(scores, len(scores) - top)[len(scores) - top]
        numbers = np.flatnonzero(scores >= least)
    else:
        numbers = np.arange(len(scores))
    order = numbers[np.argsort(-scores[numbers], kind="stable")][:top]
    return [(int(i), float(scores[i])) for i in order if scores[i] > above]


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(size, 1e-12)


def _name(path: Path, root: Path | None) -> str:
    return display(path if root is None else path.relative_to(root))


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        about = path.stat()
    except OSError as error:
        raise DataError(f"{display(path)}: {error.strerror or error}") from error
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def _hash(path: Path) -> str:
    try:
        return sha256(path) if path.is_file() else ""
    except OSError:
        return ""  # reading it will say what is wrong


def _default_folder(parts: Sequence[str | Path], settings: dict[str, Any]) -> Path:
    key = json.dumps([[os.path.abspath(part) for part in parts], settings]).encode()
    name = hashlib.sha256(key).hexdigest()[:24]
    return Path(platformdirs.user_cache_dir("inkstone")) / "search" / name
