"""A file of rows while it is being made: it can be cut off at any moment and gone on with.

`OUT.partial` holds the rows so far. `OUT.partial.json` says how many of them are whole, what made
them, and the SHA-256 of the rows and of the records that they answer. The rows are on the disk
before the note is. Whoever goes on reads the input again from its beginning: as long as the records
that are answered are the same, the file ends as if nothing had happened. `OUT` appears at the end,
by a link, which never replaces a file.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import itertools
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from inkstone.errors import CheckpointError, DataError, RunError, UsageError
from inkstone.files import read_json, sync, write_atomic

SAVE_EVERY_S = 2.0  # at most that much work is lost, and the rows under way
BLOCK = 1 << 20


class Done(NamedTuple):
    """How far the rows reach; replaced as one, so that a signal finds the old or the new.

    Attributes:
        records: Rows that are written.
        size: Their bytes.
        input: SHA-256 of the records that they answer.
        output: SHA-256 of the rows.
    """

    records: int
    size: int
    input: Any
    output: Any

    def and_also(self, records: Sequence[bytes], rows: bytes) -> Done:
        """With more rows."""
        read, written = self.input.copy(), self.output.copy()
        read.update(b"".join(records))
        written.update(rows)
        return Done(self.records + len(records), self.size + len(rows), read, written)


class Partial:
    """Rows on their way to a file; made by `Partial.open`.

    Attributes:
        target: The file that they will be.
        path: Where they are so far.
        maker: What makes them: the same from the first row to the last.
        kept: Rows of earlier attempts.
    """

    def __init__(self, target: Path, maker: Mapping[str, str]) -> None:
        self.target, self.maker = target, dict(maker)
        self.path = target.with_name(f"{target.name}.partial")
        self.state = target.with_name(f"{target.name}.partial.json")
        self.kept = 0
        self._done = Done(0, 0, hashlib.sha256(), hashlib.sha256())
        self._saved_at = time.monotonic()
        self._expected = ""
        self._file = -1
        self._mine = False  # what is on the disk is ours, to save and to remove

    @property
    def records(self) -> int:
        """Rows that are written."""
        return self._done.records

    @classmethod
    @contextlib.contextmanager
    def open(
        cls, target: Path, maker: Mapping[str, str], keep: Sequence[str] = ()
    ) -> Iterator[Partial]:
        """Begin, or go on where an earlier attempt was cut off.

        Args:
            target: A file that does not exist.
            maker: What makes the rows; an attempt goes on only where it is the same.
            keep: Entries of `maker` that are taken over from the earlier attempt instead.

        Raises:
            UsageError: `target` is there, or another file is in the way.
            RunError: Another process writes it, or what is there does not fit.
            DataError: It cannot be written.
        """
        rows = cls(target, maker)
        try:
            with rows._typed():
                rows._claim()
                rows._load(keep)
                rows._mine = True
            yield rows
        finally:
            rows._close()

    def check(self, records: Iterable[bytes]) -> None:
        """Whether the first records, up to `kept`, are those that the rows answer.

        Raises:
            RunError: They are others.
        """
        for record in itertools.islice(records, self.kept):
            self._done.input.update(record)
        if self.kept and self._done.input.hexdigest() != self._expected:
            raise self._misfit(f"the input has changed: its first {self.kept:,} records")

    def write(self, records: Sequence[bytes], lines: Sequence[bytes]) -> None:
        """Add rows, and every few seconds note how far they reach.

        Args:
            records: What is answered.
            lines: The rows, one a record.

        Raises:
            DataError: The disk is full or failing; what was written stays.
        """
        data = b"".join(lines)
        with self._typed():
            view = memoryview(data)
            while view:
                view = view[os.write(self._file, view) :]
            self._done = self._done.and_also(records, data)
            if time.monotonic() - self._saved_at >= SAVE_EVERY_S:
                self.save()

    def save(self) -> None:
        """Note durably how far the rows reach."""
        done = self._done
        os.fsync(self._file)
        note = {
            "format": 1, "records": done.records, "bytes": done.size, "maker": self.maker,
            "input": done.input.hexdigest(), "output": done.output.hexdigest(),
        }  # fmt: skip
        write_atomic(self.state, json.dumps(note, indent=1) + "\n")
        self._saved_at = time.monotonic()

    def finish(self) -> None:
        """Give the rows their name.

        Raises:
            UsageError: A file of that name has come meanwhile; the rows stay where they are.
            DataError: It cannot be written.
        """
        with self._typed():
            self.save()
            try:
                os.link(self.path, self.target)  # unlike a rename, never onto another file
            except FileExistsError as error:
                raise UsageError(
                    f"{self.target} has come while its rows were made; they are in {self.path}",
                    fix="move one of the two away, and give the same command again",
                ) from error
            sync(self.target.parent)
            self._remove()
            self._mine = False

    # --- opening and closing ---------------------------------------------------------------------

    def _claim(self) -> None:
        """Open the partial file as its only writer."""
        if os.path.lexists(self.target):
            with contextlib.suppress(OSError):  # cut off between the link and the tidying up
                if os.path.samefile(self.path, self.target):
                    self._remove()
            raise UsageError(f"{self.target} is there already", fix="choose another --output")
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        self._file = os.open(self.path, flags, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(self._file), os.stat(self.path))
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine or os.path.lexists(self.target):
            os.close(self._file)
            self._file = -1
            raise RunError(
                f"{self.target} is being written by another process",
                fix="wait for it, or choose another --output",
            )
        if not stat.S_ISREG(os.fstat(self._file).st_mode):
            raise self._stranger()

    def _load(self, keep: Sequence[str]) -> None:
        """Where the earlier attempt stood; what it wrote behind that is cut off."""
        size = os.fstat(self._file).st_size
        if not os.path.lexists(self.state):
            if size:
                raise self._stranger()
            self.save()
            return
        note = self._read_note()
        self.maker |= {key: note["maker"][key] for key in keep if key in note["maker"]}
        changed = [k for k in sorted(self.maker) if note["maker"].get(k) != self.maker[k]]
        if changed:
            raise self._misfit(f"it was made by another {' and another '.join(changed)}")
        self.kept, self._expected = note["records"], note["input"]
        self._done = Done(self.kept, note["bytes"], hashlib.sha256(), hashlib.sha256())
        left = self._done.size
        while left and (block := os.read(self._file, min(BLOCK, left))):
            self._done.output.update(block)
            left -= len(block)
        if left or self._done.output.hexdigest() != note["output"]:
            raise self._misfit("it is not as it was written")
        os.ftruncate(self._file, self._done.size)

    def _read_note(self) -> dict[str, Any]:
        try:
            note = read_json(self.state)
        except CheckpointError as error:
            raise self._misfit(f"{self.state.name} is damaged ({error.message})") from error
        counts = [note.get("records"), note.get("bytes")]
        sound = all(type(x) is int and x >= 0 for x in counts)
        sound = sound and all(isinstance(note.get(k), str) for k in ("input", "output"))
        if not sound or not isinstance(note.get("maker"), dict) or note.get("format") != 1:
            raise self._misfit(f"{self.state.name} is no note of Inkstone")
        return note

    def _close(self) -> None:
        if self._file < 0:
            return
        with contextlib.suppress(OSError, DataError):  # a full disk: the last note holds
            if self._mine and self.records > self.kept:
                self.save()
            elif self._mine and not self.records:
                self._remove()
        os.close(self._file)
        self._file = -1

    def _remove(self) -> None:
        for stale in self.state.parent.glob(f".{glob.escape(self.state.name)}.*.tmp"):
            stale.unlink(missing_ok=True)  # of a note that was cut off
        self.state.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    # --- errors ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = f"; {self.records:,} rows are kept in {self.path}" if self.records else ""
            raise DataError(
                f"cannot write {self.target}: {error.strerror or error}{kept}",
                fix="make room and give the same command again"
                if kept
                else "choose another --output",
            ) from error

    def _stranger(self) -> UsageError:
        return UsageError(
            f"{self.path} is there already, and it is no output that was cut off",
            fix="move it away, or choose another --output",
        )

    def _misfit(self, reason: str) -> RunError:
        return RunError(
            f"{self.path} cannot be gone on with: {reason}",
            fix=f"put back what has changed; or delete {self.path} and {self.state.name} to begin "
            "anew; or choose another --output",
        )
