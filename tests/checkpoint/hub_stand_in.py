"""A server on this machine that answers the routes of the Hugging Face hub."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What it serves, and what it was asked.

    Attributes:
        models: Files of a repository by its name; the bytes of a file by its path.
        gated: Repositories that ask for `token`.
        asked: (method, path) of every request, in order.
        broken: Every answer is 503.
    """

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_secret"
    asked: list[tuple[str, str]] = field(default_factory=list)
    broken: bool = False
    url: str = ""

    def add(self, name: str, folder: Path) -> None:
        """Serve the files of a folder."""
        paths = (path for path in folder.rglob("*") if path.is_file())
        self.models[name] = {str(p.relative_to(folder)): p.read_bytes() for p in paths}

    def commit(self, name: str) -> str:
        """The one commit of a repository: forty hexadecimal digits."""
        state = hashlib.sha1(name.encode())
        for path, data in sorted(self.models[name].items()):
            state.update(path.encode() + data)
        return state.hexdigest()

    def fetched(self) -> list[str]:
        """Names of the files that were sent."""
        paths = (path for method, path in self.asked if method == "GET" and "/resolve/" in path)
        return sorted(path.rpartition("/resolve/")[2].partition("/")[2] for path in paths)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Answer on 127.0.0.1 at a free port while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append((self.command, self.path))
            self._answer()

        do_HEAD = do_GET

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path).removeprefix("/")
            if hub.broken:
                return self._error(503, "")
            api = path.removeprefix("api/models/")
            name = next((n for n in hub.models if f"{api}/".startswith(f"{n}/")), None)
            if name is None:
                return self._error(401, "")  # so does the hub for a name that nobody has
            if name in hub.gated and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._error(403, "GatedRepo")
            files, commit = hub.models[name], hub.commit(name)
            kind, _, rest = api.removeprefix(name).removeprefix("/").partition("/")
            revision, _, file = rest.partition("/")
            if kind and revision not in ("main", "v1", commit):
                return self._error(404, "RevisionNotFound")
            if api != path and kind in ("", "revision"):
                siblings = [{"rfilename": f} for f in files]
                return self._json({"id": name, "modelId": name, "sha": commit,
                                   "siblings": siblings, "tags": [], "private": False})  # fmt: skip
            if api != path and kind == "tree":
                rows = [{"type": "file", "path": f, "size": len(data), "oid": _etag(data)}
                        for f, data in files.items()]  # fmt: skip
                return self._json(rows)
            if kind == "resolve" and file in files:
                return self._file(files[file], commit)
            return self._error(404, "EntryNotFound")

        def _file(self, data: bytes, commit: str) -> None:
            start = 0
            if asked := self.headers.get("Range"):
                start = int(asked.removeprefix("bytes=").partition("-")[0])
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("ETag", f'"{_etag(data)}"')
            self.send_header("X-Repo-Commit", commit)
            self.send_header("Accept-Ranges", "bytes")
            self._send(data[start:], "application/octet-stream")

        def _json(self, value: Any) -> None:
            self.send_response(200)
            self._send(json.dumps(value).encode(), "application/json")

        def _error(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
                self.send_header("X-Error-Message", f"this is {code}")
            self._send(b"{}", "application/json")

        def _send(self, data: bytes, kind: str) -> None:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
