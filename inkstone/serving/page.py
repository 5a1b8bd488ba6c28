"""The page at `/`: a fixed list of files, read once, that may load nothing from anywhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response

FOLDER = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript",
         ".svg": "image/svg+xml"}  # fmt: skip
FILES = {  # by path; no path of a request reaches the disk
    "/": "index.html",
    **{
        f"/page/{name}": name
        for name in (
            "style.css", "icon.svg", "main.js", "words.js", "parts.js", "ask.js", "chat.js",
            "complete.js", "tasks.js", "attention.js", "runs.js",
        )
    },
}  # fmt: skip
PATHS = frozenset(FILES)
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # text cannot become HTML, even by mistake
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "X-Frame-Options": "DENY",
}


@dataclass(frozen=True)
class Page:
    """The files in memory.

    Attributes:
        files: Content and type, by path.
    """

    files: dict[str, tuple[bytes, str]]

    @classmethod
    def read(cls) -> Page:
        """From the package."""
        return cls(
            {
                path: ((FOLDER / name).read_bytes(), TYPES[Path(name).suffix] + "; charset=utf-8")
                for path, name in FILES.items()
            }
        )

    def add_to(self, app: FastAPI) -> None:
        """Answer GET and HEAD of every file; they are no part of the described interface."""
        for path in self.files:
            app.add_api_route(
                path, self._answer(path), methods=["GET", "HEAD"], include_in_schema=False
            )

    def _answer(self, path: str) -> Callable[[], Awaitable[Response]]:
        content, kind = self.files[path]

        async def answer() -> Response:
            return Response(content, headers={**HEADERS, "Content-Type": kind})

        return answer
