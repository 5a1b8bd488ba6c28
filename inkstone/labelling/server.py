"""The page for labelling, served to this machine alone.

`http.server` on 127.0.0.1. Whoever has the address with its token may label, nobody else: the Host
must be this machine (against rebinding), an Origin that is given must be the page's own, the token
is compared in constant time, bodies are small and JSON, and the page may load nothing and talk to
nobody else (Content-Security-Policy). Nothing is logged.

    GET  /TOKEN/            the page
    GET  /TOKEN/api/state   the example to label, the model's guess, counts, the curve
    POST /TOKEN/api/label   {"id": …, "label": …} → the next state
    POST /TOKEN/api/skip    {"id": …} → the next state
    POST /TOKEN/api/undo    {} → the state with the example that was taken back
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from inkstone.errors import DataError, InkstoneError, UsageError
from inkstone.labelling.project import Point, Project
from inkstone.labelling.votes import Floats

PAGE = Path(__file__).with_name("page.html")
HOST = "127.0.0.1"
MAX_BODY = 1 << 14
MAX_SHOWN = 50_000  # characters of one text
TIMEOUT_S = 10.0  # for a request to arrive
CONNECTIONS = 32  # at once
ACTIONS = {"label": {"id", "label"}, "skip": {"id"}, "undo": set[str]()}


class Desk:
    """One person's place at the page: what lies before them, and what the model thinks of it.

    Args:
        project: The table and its labels.
        refit: Labels after which the model is fitted again.
    """

    def __init__(self, project: Project, refit: int = 5) -> None:
        self.project, self.refit = project, refit
        self.curve: list[Point] = project.curve()
        self._lock = threading.Lock()
        self._p: Floats | None = None
        self._queue: list[int] = []
        self._since = 0
        self._now: int | None = None
        self._fit()
        self._now = self._next()

    def state(self) -> dict[str, Any]:
        """What the page shows."""
        with self._lock:
            return self._state()

    def act(self, action: str, body: dict[str, Any]) -> dict[str, Any]:
        """Do one thing; the state after it.

        Raises:
            UsageError: It cannot be done: other fields, an unknown text, a label given twice.
            DataError: The file cannot be written; nothing has changed.
        """
        wanted = ACTIONS[action]
        if set(body) != wanted or not all(isinstance(value, str) for value in body.values()):
            raise UsageError(f"{action} needs {', '.join(sorted(wanted)) or 'no field'}")
        with self._lock:
            store, places = self.project.store, self.project.places
            if action == "undo":
                back = store.undo()
                if back is not None:
                    self._since = max(0, self._since - 1)
                    self._now = places.get(back, self._now)
                return self._state()
            place = places.get(body["id"])
            if place is None:
                raise UsageError("there is no such text")
            if place not in self.project.open_rows():
                raise UsageError("this text was labelled or passed over already")
            if action == "label":
                store.label(body["id"], body["label"])
                self._since += 1
            else:
                store.skip(body["id"])
            if self._since >= self.refit or self._p is None:
                self._fit()
            self._now = self._next()
            return self._state()

    def _fit(self) -> None:
        self._since = 0
        self._p = self.project.guess()
        self._queue = self.project.suggest(2 * self.refit, self._p)
        point = self.project.score()
        if point is not None and (not self.curve or self.curve[-1] != point):
            self.curve.append(point)

    def _next(self) -> int | None:
        """A check where one is due, else what the model would learn most from."""
        due = self.project.next_check()
        if due is not None:
            return due
        free = set(self.project.open_rows().tolist())
        while self._queue:
            place = self._queue.pop(0)
            if place in free:
                return place
        self._queue = self.project.suggest(2 * self.refit, self._p)
        if self._queue:
            return self._queue.pop(0)
        return min(free, default=None)  # checks are left, or nothing

    def _state(self) -> dict[str, Any]:
        project = self.project
        counts = project.counts()
        state: dict[str, Any] = {
            "labels": list(project.labels),
            "counts": {name: by["person"] for name, by in counts.items()},
            "others": sum(by["rule"] + by["model"] for by in counts.values()),
            "done": sum(by["person"] for by in counts.values()),
            "skipped": sum(text.id in project.store.skipped for text in project.texts),
            "total": len(project.texts),
            "can_undo": bool(project.store.history),
            "curve": [asdict(point) for point in self.curve],
            "example": None,
        }
        if self._now is not None:
            text = project.texts[self._now]
            state["example"] = {
                "id": text.id, "text": text.text[:MAX_SHOWN], "place": text.place,
                "cut": len(text.text) > MAX_SHOWN, "check": bool(project.checks[self._now]),
                "guess": self._guess(self._now),
            }  # fmt: skip
        return state

    def _guess(self, place: int) -> dict[str, Any] | None:
        """The model's, or before there is one that of the rules."""
        if self._p is not None:
            best = int(self._p[place].argmax())
            label, sure = self.project.labels[best], float(self._p[place, best])
            return {"label": label, "confidence": sure, "by": "model"}
        said = self.project.label_of(place)
        if said is None or said.by == "person":
            return None
        return {"label": said.label, "confidence": said.confidence, "by": said.by}


class Server(ThreadingHTTPServer):
    """The page of one desk.

    Args:
        desk: What is served.
        port: 0 takes any that is free.

    Raises:
        UsageError: The port is taken.
    """

    daemon_threads = True

    def __init__(self, desk: Desk, port: int = 0) -> None:
        self.desk, self.token = desk, secrets.token_urlsafe(24)
        self.page = PAGE.read_bytes()
        self.policy = policy(self.page.decode("utf-8"))
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        try:
            super().__init__((HOST, port), Handler)
        except OSError as error:
            raise UsageError(
                f"port {port} cannot be had: {error.strerror}",
                fix="leave --port out, or try another",
            ) from error
        self.port = int(self.server_address[1])
        self.hosts = {f"{name}:{self.port}" for name in (HOST, "localhost")}

    @property
    def url(self) -> str:
        """Where the page is; whoever has it may label."""
        return f"http://{HOST}:{self.port}/{self.token}/"

    def process_request(self, request: Any, client_address: Any) -> None:
        """One more thread, unless there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Server
    server_version, sys_version = "inkstone", ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        path = self._path()
        if path == "":
            self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")
        elif path == "api/state":
            self._json(HTTPStatus.OK, self.server.desk.state())
        elif path is not None:
            self._error(HTTPStatus.NOT_FOUND, "there is nothing here")

    def do_POST(self) -> None:
        path = self._path()
        if path is None:
            return
        action = path.removeprefix("api/")
        if action not in ACTIONS or action == path:
            return self._error(HTTPStatus.NOT_FOUND, "there is nothing here")
        body = self._body()
        if body is None:
            return
        try:
            self._json(HTTPStatus.OK, self.server.desk.act(action, body))
        except UsageError as error:
            self._error(HTTPStatus.CONFLICT, error.message)
        except DataError as error:
            self._error(HTTPStatus.INSUFFICIENT_STORAGE, str(error))
        except InkstoneError as error:
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))

    def _path(self) -> str | None:
        """What is asked for, below the token; None where it was refused."""
        if self.headers.get("Host", "") not in self.server.hosts:
            self._error(HTTPStatus.MISDIRECTED_REQUEST, "this page is for this machine only")
            return None
        origin = self.headers.get("Origin")
        if origin is not None and origin.removeprefix("http://") not in self.server.hosts:
            self._error(HTTPStatus.FORBIDDEN, "another page may not ask this")
            return None
        _, _, rest = self.path.partition("/")
        token, slash, path = rest.partition("/")
        known = hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())
        if not known or not slash:
            self._error(HTTPStatus.NOT_FOUND, "there is nothing here")
            return None
        return path

    def _body(self) -> dict[str, Any] | None:
        """The object that was sent; None where it was refused."""
        length = self.headers.get("Content-Length", "")
        kind = self.headers.get_content_type()
        if kind != "application/json" or "Transfer-Encoding" in self.headers:
            self._error(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON, with its length")
            return None
        if not re.fullmatch(r"[0-9]{1,9}", length):
            self._error(HTTPStatus.LENGTH_REQUIRED, "say how long the body is")
            return None
        if int(length) > MAX_BODY:
            self._error(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {MAX_BODY} bytes")
            return None
        try:
            body = json.loads(self.rfile.read(int(length)).decode("utf-8"))
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self._error(HTTPStatus.BAD_REQUEST, "this is no JSON object")
            return None
        return body

    def _json(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode(), "application/json")

    def _error(self, status: HTTPStatus, message: str) -> None:
        self._json(status, {"error": message})

    def _send(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": self.server.policy,
            "Cache-Control": "no-store",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Connection": "close",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""


def policy(page: str) -> str:
    """The Content-Security-Policy of a page: only its own script and style, by their hashes."""

    def of(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in parts]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {of('script')}; style-src {of('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def run(
    project: Project, *, port: int = 0, refit: int = 5, told: Callable[[str], None] = print
) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        DataError: Another process labels into this file.
        UsageError: The port is taken.
    """
    project.store.open()
    with Server(Desk(project, refit), port) as server:
        told(f"label here, in a browser of this machine: {server.url}")
        told("Ctrl-C ends; every label is on the disk already")
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            told("")
