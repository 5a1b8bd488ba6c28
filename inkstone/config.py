"""The base of every configuration section, and the progress protocol that long jobs report to."""

from __future__ import annotations

from typing import Protocol

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen, strict group of settings: unknown keys, NaN and infinity are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, strict=False
    )


class Progress(Protocol):
    """Called by long jobs: `done` of `total` (None when unknown), counted in `unit`."""

    def __call__(self, done: int, total: int | None, unit: str) -> None: ...
