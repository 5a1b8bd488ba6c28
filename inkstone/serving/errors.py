"""Answers to what cannot be done, in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from inkstone.errors import (
    DataError,
    InkstoneError,
    ModelError,
    TokenizerError,
    UsageError,
)
from inkstone.serving.threads import Busy, Stopped

STATUSES: dict[type[InkstoneError], int] = {
    Busy: 429,
    Stopped: 503,
    UsageError: 400,
    TokenizerError: 400,
    DataError: 400,
    ModelError: 400,
}


class ApiError(Exception):
    """What the client is told instead of an answer.

    Args:
        status: Of HTTP.
        message: What is wrong, and what to do.
        param: The field that it is about.
        code: A name for programs.
        headers: More of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    @property
    def kind(self) -> str:
        """The type that clients tell errors by."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        return {
            "error": {
                "message": self.message, "type": self.kind, "param": self.param, "code": self.code,
            }
        }  # fmt: skip


def told(error: InkstoneError) -> ApiError:
    """A named error as a client is told of it."""
    status = next((s for kind, s in STATUSES.items() if isinstance(error, kind)), 500)
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Busy) else {}
    text = error.message if error.fix is None else f"{error.message}; {error.fix}"
    return ApiError(status, text, headers=headers)
