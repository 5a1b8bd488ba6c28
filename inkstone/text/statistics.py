"""What cleaning read, kept and dropped, and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from inkstone.errors import DataError


@dataclass(frozen=True)
class TextStatistics:
    """Counts that add up: documents read = kept + dropped, kept = train + valid.

    Attributes:
        documents_read: Documents that the readers gave.
        documents_kept: Of those, what came into the stores.
        bytes_read: UTF-8 bytes of the texts as read; for .txt files that of `wc -c`.
        bytes_kept: UTF-8 bytes in the stores.
        dropped: Number of documents by reason.
        train_documents: Documents to train on.
        valid_documents: Documents held out.
        train_bytes: Their UTF-8 bytes.
        valid_bytes: Their UTF-8 bytes.
        skipped: What never became a document (`text.on_error="skip"`, files of other kinds).
        examples: The first messages about what was skipped.
    """

    documents_read: int
    documents_kept: int
    bytes_read: int
    bytes_kept: int
    dropped: dict[str, int]
    train_documents: int
    valid_documents: int
    train_bytes: int
    valid_bytes: int
    skipped: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line that a person can check."""
        plural = "" if self.documents_read == 1 else "s"
        parts = [
            f"{self.documents_read:,} document{plural} ({size_text(self.bytes_read)}) read",
            f"kept {self.documents_kept:,} ({size_text(self.bytes_kept)})",
            f"dropped {_counts(self.dropped)}",
        ]
        if self.skipped:
            parts.append(f"skipped {_counts(self.skipped)}")
        parts.append(f"{self.train_documents:,} train / {self.valid_documents:,} held out")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> TextStatistics:
        """What `to_dict` gave.

        Raises:
            DataError: It is something else.
        """
        known = {f.name: f for f in fields(cls)}
        if not isinstance(values, dict) or not set(values) <= set(known):
            raise DataError("not the statistics of a cleaned corpus", fix="clean the text again")
        for name in known:
            value, kind = values.get(name), known[name].type
            sound = {
                "int": type(value) is int,
                "dict[str, int]": isinstance(value, dict)
                and all(isinstance(k, str) and type(v) is int for k, v in value.items()),
                "list[str]": isinstance(value, list) and all(isinstance(v, str) for v in value),
            }
            if not sound[str(kind)]:
                raise DataError(
                    f"the statistics of a cleaned corpus have a bad {name!r}",
                    fix="clean the text again",
                )
        return cls(**values)


def size_text(count: int) -> str:
    """Bytes as people write them: powers of 1000."""
    if count < 1000:
        return f"{count} bytes"
    value, unit = count / 1000, "kB"
    for larger in ("MB", "GB", "TB"):
        if value < 999.95:
            break
        value, unit = value / 1000, larger
    return f"{value:,.1f} {unit}"


def _counts(reasons: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "none"
