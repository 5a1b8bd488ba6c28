"""What every format of `compression.export` is given and gives back."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inkstone.errors import ModelError, TokenizerError
from inkstone.tokenizers.tokenizer import Tokenizer


@dataclass(frozen=True)
class Source:
    """A model to be exported.

    Attributes:
        folder: It was opened from.
        model: The network, in evaluation mode.
        tokenizer: None where the folder has none.
        info: The contents of inkstone.json.
    """

    folder: Path
    model: Any
    tokenizer: Tokenizer | None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """The file of `inkstone.models` that it is of."""
        return type(self.model).__module__.rsplit(".", 1)[-1]

    @property
    def name(self) -> str:
        """What to call it: as it is named, else the run or the folder."""
        where = self.folder.absolute()
        folder = where.parent if where.name == "model" else where
        return str(self.info.get("name") or folder.name)

    @property
    def labels(self) -> list[str]:
        """What its labels are called, if it has any."""
        found = self.info.get("labels")
        return [str(name) for name in found] if isinstance(found, list) else []

    def read_with(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            TokenizerError: There is none.
        """
        if self.tokenizer is None:
            raise TokenizerError(
                f"{self.folder} has no tokenizer, without which other programs cannot read text",
                fix="put its tokenizer.json beside config.json",
            )
        return self.tokenizer


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: The file or folder.
        format: One of `formats()`.
        type: How numbers are stored.
        n_bytes: Of all files together.
        facts: What else can be told, as plain values.
        notes: What the user should know: where the export is less than the model.
    """

    path: Path
    format: str
    type: str
    n_bytes: int
    facts: dict[str, Any]
    notes: list[str]

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        plain = {"path": str(self.path), "format": self.format, "type": self.type}
        return {**plain, "bytes": self.n_bytes, **self.facts, "notes": self.notes}


def unsupported(source: Source, form: str, known: str) -> ModelError:
    """The error for a family that a format cannot hold."""
    return ModelError(f"{source.family} models have no form in {form}", fix=f"it holds {known}")
