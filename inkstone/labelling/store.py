"""The file of labels: what was said of which text, by whom and how surely. Nothing is overwritten.

Lines of JSON, each appended and synced before it counts. The first names the labels; the others are

    {"id": "3f…", "event": "label", "label": "spam", "by": "person", "time": "…"}
    {"id": "3f…", "event": "label", "label": "ham", "by": "rule", "confidence": 0.91,
     "source": "prize; link", "time": "…"}
    {"id": "3f…", "event": "skip", "by": "person", "time": "…"}
    {"id": "3f…", "event": "undo", "by": "person", "time": "…"}

where `id` is the SHA-256 of the text, shortened: rows may move in their table, and a text that
stands twice has one label. A person's word holds against any rule and any model, whenever it was
said; among the others the last one holds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from inkstone.errors import DataError, UsageError
from inkstone.files import sync

VERSION = 1
MAX_LINE = 1 << 16
MAX_LABELS = 200
ID_DIGITS = 32  # of SHA-256
By = Literal["person", "rule", "model"]
EVENTS = ("label", "skip", "undo")


@dataclass(frozen=True, slots=True)
class Label:
    """What is said of a text.

    Attributes:
        label: The label.
        by: Who says so.
        confidence: From 0 to 1; 1 for a person.
        source: Which rules, or which model; "" for a person.
    """

    label: str
    by: By
    confidence: float = 1.0
    source: str = ""


def text_id(text: str) -> str:
    """What a text is known by."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:ID_DIGITS]


class Store:
    """The labels of one file; one process at a time may write it.

    Args:
        path: The file; made when the first label is written.
        labels: The classes. Those that the file knows already need not be named again; new ones
            are added to it.

    Attributes:
        labels: All classes, in the order of their keys.
        said: By id, what holds.
        skipped: Ids that a person passed over.
        history: A person's events that hold, oldest first: (id, event).

    Raises:
        DataError: The file is something else, or damaged; names the line. Another process writes.
        UsageError: Fewer than two labels, or too many, or one that is empty.
    """

    def __init__(self, path: Path | str, labels: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.labels: tuple[str, ...] = ()
        self.said: dict[str, Label] = {}
        self.skipped: set[str] = set()
        self.history: list[tuple[str, str]] = []
        self._under: dict[str, Label] = {}  # what rules and models say, whatever people do
        self._file = -1
        self._seen = 0  # bytes
        if self.path.exists():
            self._read()
        self._new = tuple(x for x in dict.fromkeys(labels) if x not in self.labels)
        self.labels += self._new
        if not 2 <= len(self.labels) <= MAX_LABELS or not all(x.strip() for x in self.labels):
            raise UsageError(
                f"{len(self.labels)} labels: there must be 2 to {MAX_LABELS}, each with a name",
                fix="name them: --labels spam,ham",
            )

    def label(self, id: str, label: str) -> None:
        """A person says what a text is.

        Raises:
            UsageError: A person has said so already (undo it first), or the label is unknown.
            DataError: The file cannot be written.
        """
        if label not in self.labels:
            raise UsageError(f"{label!r} is not among the labels {', '.join(self.labels)}")
        if self.by_person(id):
            raise UsageError(
                "a person has labelled this text already", fix="undo that first; nothing is lost"
            )
        self._append([{"id": id, "event": "label", "label": label, "by": "person"}])

    def label_many(self, labels: Iterable[tuple[str, Label]]) -> int:
        """What rules or models say; ids that a person labelled are left out.

        Returns:
            How many were written: those that say something new.
        """
        rows = []
        for id, said in labels:
            assert said.by != "person" and said.label in self.labels
            if not self.by_person(id) and self._under.get(id) != said:
                rows.append({"id": id, "event": "label", **asdict(said)})
        self._append(rows)
        return len(rows)

    def skip(self, id: str) -> None:
        """A person passes over a text; it does not come again."""
        self._append([{"id": id, "event": "skip", "by": "person"}])

    def undo(self) -> str | None:
        """Take back the last thing that a person did that still holds; its id."""
        if not self.history:
            return None
        id = self.history[-1][0]
        self._append([{"id": id, "event": "undo", "by": "person"}])
        return id

    def by_person(self, id: str) -> bool:
        """Whether a person has said what this text is."""
        said = self.said.get(id)
        return said is not None and said.by == "person"

    def close(self) -> None:
        """Let others write."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        self.open()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        lines = [json.dumps({**row, "time": now}, ensure_ascii=False) + "\n" for row in rows]
        self._write("".join(lines))
        for row in rows:
            self._take(row)

    def open(self) -> None:
        """Take the file for this process alone, and write down what labels there are.

        Raises:
            DataError: Another process has it, or it cannot be written.
        """
        if self._file < 0:
            try:
                new = not self.path.exists()
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._file = os.open(self.path, flags, 0o644)
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if new:
                    sync(self.path.absolute().parent)
                if os.fstat(self._file).st_size != self._seen:
                    self.close()
                    raise DataError(
                        f"{self.path} has changed since it was read", fix="start once more"
                    )
            except BlockingIOError:
                self.close()
                raise DataError(
                    f"{self.path} is being written by another process",
                    fix="end the other `inkstone label` first, or choose another --out",
                ) from None
            except OSError as error:
                self.close()
                raise DataError(f"{self.path}: {error.strerror or error}") from error
            self._mend()
        if self._new:
            self._write(
                json.dumps(
                    {"event": "labels", "format": VERSION, "labels": self._new}, ensure_ascii=False
                )
                + "\n"
            )
            self._new = ()

    def _write(self, text: str) -> None:
        """All of it on the disk, or nothing of it."""
        size = os.fstat(self._file).st_size
        data = text.encode("utf-8")
        try:
            done = 0
            while done < len(data):
                done += os.write(self._file, data[done:])
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, size)
            raise DataError(
                f"{self.path}: {error.strerror or error}",
                fix="what was labelled before is safe; make room and go on",
            ) from error

    def _mend(self) -> None:
        """A last line that a crash cut short was never said: it goes. A missing end is put."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, min(size, MAX_LINE), max(0, size - MAX_LINE))
        if not tail or tail.endswith(b"\n"):
            return
        rest = tail[tail.rfind(b"\n") + 1 :]
        if _parsed(rest) is None:
            os.ftruncate(self._file, size - len(rest))
        else:
            self._write("\n")

    def _read(self) -> None:
        try:
            with open(self.path, "rb") as file:
                number = 0
                while line := file.readline(MAX_LINE + 1):
                    number += 1
                    self._seen += len(line)
                    row = _parsed(line)
                    torn = not line.endswith(b"\n") and len(line) <= MAX_LINE
                    if row is None and torn and number > 1:
                        break  # a crash cut it short
                    if row is None or not self._sound(row, first=number == 1):
                        raise DataError(
                            f"{self.path}, line {number}: this is no line of a file of labels",
                            fix="choose another file with --out; this one is left as it is"
                            if number == 1
                            else "mend or remove the line",
                        )
                    self._take(row)
        except OSError as error:
            raise DataError(f"{self.path}: {error.strerror or error}") from error

    def _sound(self, row: dict[str, Any], *, first: bool) -> bool:
        event = row.get("event")
        if event == "labels" or first:
            names = row.get("labels")
            return (
                event == "labels"
                and row.get("format") == VERSION
                and isinstance(names, list)
                and 0 < len(names) + len(self.labels) <= MAX_LABELS
                and all(isinstance(name, str) and name.strip() for name in names)
            )
        id, by, confidence = row.get("id"), row.get("by"), row.get("confidence", 1.0)
        sound = event in EVENTS and by in get_args(By) and (event == "label" or by == "person")
        sound &= isinstance(id, str) and 0 < len(id) <= 64
        sound &= event != "label" or row.get("label") in self.labels
        sound &= isinstance(confidence, int | float) and math.isfinite(confidence)
        return sound and 0 <= confidence <= 1 and isinstance(row.get("source", ""), str)

    def _take(self, row: dict[str, Any]) -> None:
        """What a line changes."""
        event = row["event"]
        if event == "labels":
            self.labels += tuple(x for x in row["labels"] if x not in self.labels)
            return
        id = row["id"]
        if event == "undo":
            mine = [i for i, (known, _) in enumerate(self.history) if known == id]
            if mine and self.history.pop(mine[-1])[1] == "label":
                self.said.pop(id, None)
                if id in self._under:
                    self.said[id] = self._under[id]
            self.skipped.discard(id)
        elif event == "skip":
            self.skipped.add(id)
            self.history.append((id, event))
        else:
            said = Label(row["label"], row["by"], row.get("confidence", 1.0), row.get("source", ""))
            if said.by == "person":
                self.history.append((id, event))
                self.said[id] = said
            else:
                self._under[id] = said
                if not self.by_person(id):
                    self.said[id] = said


def _parsed(line: bytes) -> dict[str, Any] | None:
    if len(line) > MAX_LINE:
        return None
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
