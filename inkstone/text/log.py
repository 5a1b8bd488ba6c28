"""What reading leaves behind besides documents: what was skipped, and how far it has come."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import BinaryIO

from inkstone.errors import DataError
from inkstone.text.config import TextConfig

EXAMPLES = 20  # messages kept of what was skipped


@dataclass
class ReadLog:
    """Filled while `readers.read` runs.

    Attributes:
        config: Its `on_error` decides what `bad` does.
        skipped: How many things never became documents, by kind.
        examples: The first messages about them.
        finished_bytes: Size on disk of the files read so far.
        current: The file that is being read.
    """

    config: TextConfig
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    finished_bytes: int = 0
    current: BinaryIO | None = None

    def bad(self, error: DataError, kind: str = "bad records") -> None:
        """Raise the error, or count it and go on, as `on_error` says."""
        if self.config.on_error == "stop":
            raise error
        self.skipped[kind] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(error.message)

    @property
    def bytes_done(self) -> int:
        """Bytes on disk that were read."""
        if self.current is None or self.current.closed:
            return self.finished_bytes
        return self.finished_bytes + self.current.tell()

    def finish_file(self) -> None:
        """The current file is done with."""
        self.finished_bytes, self.current = self.bytes_done, None
