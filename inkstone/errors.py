"""Named errors: what was wrong, where, and what to do.

Every mistake that a user can make ends in a subclass of `InkstoneError`; the command line
prints it without a traceback. `assert` is left for our own invariants.
"""

from __future__ import annotations


class InkstoneError(Exception):
    """Base of all errors that a user can cause and mend.

    Args:
        message: What is wrong and where (file, line, field).
        fix: What to do about it, as one sentence; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.message}\n  → {self.fix}" if self.fix else self.message


class UsageError(InkstoneError):
    """A command or function was called with arguments that do not fit together."""

    exit_code = 2


class DataError(InkstoneError):
    """A corpus file or folder cannot be read as text."""


class TokenizerError(InkstoneError):
    """A tokenizer file is malformed, or a tokenizer cannot do what was asked."""


class RecipeError(InkstoneError):
    """A recipe has an unknown key, a wrong type, or a value out of range."""

    exit_code = 2


class ModelError(InkstoneError):
    """A model configuration is impossible, or an input does not fit the model."""


class CheckpointError(InkstoneError):
    """A checkpoint is damaged, incomplete or does not fit its configuration."""


class RunError(InkstoneError):
    """A run folder is in use, already holds a run, or cannot be continued."""


class TrainingError(InkstoneError):
    """Training cannot go on (for example, the loss is no longer a number)."""


class DeviceError(InkstoneError):
    """The device that was asked for is not there or cannot do what was asked."""


class UnknownNameError(UsageError):
    """A name (model family, recipe, key) is not known; lists the nearest ones."""


class MissingExtraError(InkstoneError):
    """An optional dependency is not installed; names the extra that brings it."""


class HubError(CheckpointError):
    """A model cannot be had from the hub: not there, not allowed, or not reachable."""
