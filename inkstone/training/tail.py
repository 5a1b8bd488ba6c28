"""The log of a run that is still being written, read as it grows and in bounded memory."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

READ_BYTES = 1 << 20  # of one look; the rest comes with the next ones
LINE_BYTES = 1 << 16  # a longer line is passed over
MOST_POINTS = 400
MOST_SCORES = 16  # names of scores that are kept


class Curve:
    """Values over steps; when there are too many, neighbors become their mean.

    Args:
        most: Points at most.
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self.most, self.each = most, 1
        self._parts: list[tuple[int, float, int]] = []  # last step, sum, values

    def __len__(self) -> int:
        return len(self._parts)

    def add(self, step: int, value: float) -> None:
        """The next value."""
        if self._parts and self._parts[-1][2] < self.each:
            _, total, n = self._parts.pop()
            self._parts.append((step, total + value, n + 1))
        else:
            self._parts.append((step, value, 1))
        if len(self._parts) > self.most:
            self.each *= 2
            pairs = zip(self._parts[::2], [*self._parts[1::2], None], strict=False)
            self._parts = [a if b is None else (b[0], a[1] + b[1], a[2] + b[2]) for a, b in pairs]

    @property
    def points(self) -> list[tuple[int, float]]:
        """Steps and means, in order."""
        return [(step, total / n) for step, total, n in self._parts]


class Tail:
    """What a log.jsonl has told so far.

    Only a plain file is read: a link, a pipe or a device in its place counts as no log. A file that
    was replaced (a run that was resumed) or cut is read from its beginning.

    Args:
        path: The file; it may appear later.

    Attributes:
        last: The newest row of a step.
        loss: Training loss by step, in nats a token.
        scores: What evaluations told, by name.
        changed_at: When the file was last written, in seconds since 1970; 0.0 while it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = -1
        self._forget()

    def _forget(self) -> None:
        self._at, self._rest, self._skips = 0, b"", False
        self.last: dict[str, Any] = {}
        self.loss = Curve()
        self.scores: dict[str, Curve] = {}
        self.changed_at = 0.0

    def read(self) -> bool:
        """Take in what is new, up to `READ_BYTES`; False where there is no such file."""
        try:
            # without O_NONBLOCK the opening of a pipe would wait for a writer
            number = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return False
        try:
            about = os.fstat(number)
            if not stat.S_ISREG(about.st_mode):
                return False
            if about.st_ino != self._inode or about.st_size < self._at:
                self._forget()
                self._inode = about.st_ino
            self.changed_at = about.st_mtime
            data = os.pread(number, READ_BYTES, self._at)
        except OSError:
            return False
        finally:
            os.close(number)
        self._at += len(data)
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if not self._skips and len(line) <= LINE_BYTES:
                self._take(line)
            self._skips = False
        if len(self._rest) > LINE_BYTES:
            self._rest, self._skips = b"", True
        return True

    def _take(self, line: bytes) -> None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(row, dict) or type(row.get("step")) is not int or row["step"] < 0:
            return
        if row.get("kind") == "eval":
            for name, value in row.items():
                known = name in self.scores or len(self.scores) < MOST_SCORES
                if name not in ("kind", "step") and known and is_number(value):
                    self.scores.setdefault(name[:100], Curve()).add(row["step"], float(value))
        elif row.get("kind") == "step":
            self.last = row
            if is_number(row.get("loss")):
                self.loss.add(row["step"], float(row["loss"]))


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no truth value."""
    return type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
