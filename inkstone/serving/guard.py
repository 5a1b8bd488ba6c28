"""What stands before the application: who may ask, under which name, and how much.

Every check is made before the body is read: above all whether there is a place for one more
request, so that it costs next to nothing to turn away the many that a crowded server cannot answer.
Names, origins and keys are those of `ServeConfig`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager
from typing import Any

from inkstone.serving.config import LOOPBACK, ServeConfig
from inkstone.serving.errors import ApiError, told
from inkstone.serving.page import PATHS
from inkstone.serving.threads import Busy

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Asked by what watches over the process; and files that are the same on every server, which tell
# nothing about its models and ask for the key themselves.
OPEN = frozenset({"/health/live", *PATHS})
# Their answers grow token by token; what else is posted is done at once.
GROWING = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
SHORT_BYTES = 1 << 16
HELD = "inkstone.held"  # in a request's scope: what is given back when its answer was sent
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Gate:
    """Counts the requests that are open, and turns away the next one where all places are taken.

    Args:
        places: How many may be open: of those that are posted to addresses of `GROWING` (True), and
            of all others (False).
        at_once: How many are answered at once.

    Attributes:
        refused: How many were turned away so far.
    """

    def __init__(self, places: Callable[[bool], int], at_once: int) -> None:
        self.places, self.at_once = places, at_once
        self.refused = 0
        self._open = {True: 0, False: 0}

    def open(self, *, growing: bool) -> int:
        """Requests of one of the two kinds that are open now."""
        return self._open[growing]

    @contextlib.contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        """A place for one request, as long as it is open.

        Raises:
            ApiError: There is none.
        """
        if scope["method"] != "POST":
            yield
            return
        growing = scope["path"] in GROWING
        if self._open[growing] >= max(1, self.places(growing)):
            self.refused += 1
            raise told(Busy(self._open[growing], max(1, self._open[growing] // self.at_once)))
        self._open[growing] += 1
        try:
            yield
        finally:
            self._open[growing] -= 1


class Guard:
    """An ASGI application around another.

    Args:
        app: What is guarded.
        config: Who may ask.
        gate: How many may.
    """

    def __init__(self, app: App, config: ServeConfig, gate: Gate) -> None:
        self.app, self.config, self.gate = app, config, gate
        self._keys = [key.encode() for key in config.keys]
        self._busy: Counter[bytes] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await self.app(scope, receive, send)
        headers: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.lower(), []).append(value)
        began = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                given = {name.lower() for name, _ in message.get("headers", [])}
                more = self._cors(headers) | HEADERS
                message["headers"] = [
                    *message.get("headers", []),
                    *((k.lower().encode(), v.encode()) for k, v in more.items()
                      if k.lower().encode() not in given),
                ]  # fmt: skip
            await send(message)

        try:
            self._check_name(headers)
            self._check_origin(headers)
            if scope["method"] == "OPTIONS":
                return await _plain(sending, 204, b"")
            key = self._check_key(scope, headers)
            self._check_body(headers)
            counted = self._counted(key)
            with counted, self.gate.entered(scope), contextlib.ExitStack() as held:
                scope[HELD] = held
                await self.app(scope, self._limited(receive), sending)
        except ApiError as error:
            if began:
                raise
            content = json.dumps(error.body(), ensure_ascii=False).encode("utf-8", "replace")
            close = {} if _short(headers) else {"Connection": "close"}
            await _plain(sending, error.status, content, error.headers | close)
        return None

    @contextlib.contextmanager
    def _counted(self, key: bytes) -> Iterator[None]:
        """One more request of a key; where none is needed, everybody may have all places."""
        if key and self._busy[key] >= self.config.per_key:
            raise ApiError(
                429, f"{self.config.per_key} requests of yours are open already",
                headers={"Retry-After": "1"},
            )  # fmt: skip
        self._busy[key] += 1
        try:
            yield
        finally:
            self._busy[key] -= 1

    def _check_name(self, headers: dict[bytes, list[bytes]]) -> None:
        names = headers.get(b"host", [])
        if len(names) != 1:
            raise ApiError(400, "say once which host you mean")
        name = names[0].decode("latin-1").lower()
        host = name.rsplit(":", 1)[0] if not name.endswith("]") else name
        known = {*LOOPBACK, "[::1]", self.config.host.lower(), *map(str.lower, self.config.hosts)}
        if host not in known:
            raise ApiError(
                421,
                f"this server is not called {host[:100]!r}; start it with --allow-host to be so",
            )

    def _check_origin(self, headers: dict[bytes, list[bytes]]) -> None:
        """A page of another site may not ask, whatever its content type."""
        for raw in headers.get(b"origin", []):
            origin = raw.decode("latin-1").lower()
            own = {f"http://{name.decode('latin-1').lower()}" for name in headers[b"host"]}
            own |= {"https" + name.removeprefix("http") for name in own}
            if origin not in own and origin not in map(str.lower, self.config.origins):
                raise ApiError(403, "pages of this origin may not ask; see --allow-origin")

    def _cors(self, headers: dict[bytes, list[bytes]]) -> dict[str, str]:
        origin = next((o.decode("latin-1") for o in headers.get(b"origin", [])), None)
        if origin is None or origin.lower() not in map(str.lower, self.config.origins):
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Headers": "authorization, content-type",
            "Access-Control-Allow-Methods": "GET, POST",
            "Vary": "Origin",
        }

    def _check_key(self, scope: Scope, headers: dict[bytes, list[bytes]]) -> bytes:
        """Whose request it is; b"" where no keys are set."""
        if not self._keys or scope["path"] in OPEN:
            return b""
        given = headers.get(b"authorization", [])
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        found = b""
        for key in self._keys:  # all of them, so that time tells nothing
            if hmac.compare_digest(token.strip(), key):
                found = key
        if not found or scheme.lower() != b"bearer":
            raise ApiError(
                401, "give a key: Authorization: Bearer …", headers={"WWW-Authenticate": "Bearer"}
            )
        return found

    def _check_body(self, headers: dict[bytes, list[bytes]]) -> None:
        if b"content-encoding" in headers:
            raise ApiError(415, "a body may not be compressed")
        lengths = headers.get(b"content-length", [])
        if lengths and (len(set(lengths)) > 1 or b"transfer-encoding" in headers):
            raise ApiError(400, "say once how long the body is")
        if lengths and (not lengths[0].isdigit() or len(lengths[0]) > 15):
            raise ApiError(400, "the length of the body is no number")
        if lengths and int(lengths[0]) > self.config.max_body_bytes:
            raise ApiError(413, f"a body has at most {self.config.max_body_bytes:,} bytes")

    def _limited(self, receive: Receive) -> Receive:
        """The same messages, but no more than a body may have, and in time."""
        taken, complete = 0, False

        async def limited() -> MutableMapping[str, Any]:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout(self.config.body_timeout_s):
                    message = await receive()
            except TimeoutError:
                raise ApiError(408, "the body did not come in time") from None
            if message["type"] == "http.request":
                taken += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if taken > self.config.max_body_bytes:
                    raise ApiError(413, f"a body has at most {self.config.max_body_bytes:,} bytes")
            return message

        return limited


def hold(scope: Scope, taken: AbstractContextManager[None]) -> None:
    """Take something that a request gives back when its answer was sent, or nobody waits for it.

    Raises:
        InkstoneError: As of what is taken.
    """
    scope[HELD].enter_context(taken)


def _short(headers: dict[bytes, list[bytes]]) -> bool:
    """Whether so little is left of a body that it is rather read than the connection given up."""
    if b"transfer-encoding" in headers or b"expect" in headers:
        return False
    (length, *more) = headers.get(b"content-length", [b"0"])
    return not more and length.isdigit() and len(length) <= 9 and int(length) <= SHORT_BYTES


async def _plain(
    send: Send, status: int, content: bytes, headers: dict[str, str] | None = None
) -> None:
    given = {"content-type": "application/json", "content-length": str(len(content))}
    given |= {k.lower(): v for k, v in (headers or {}).items()}
    await send(
        {"type": "http.response.start", "status": status,
         "headers": [(k.encode(), v.encode()) for k, v in given.items()]}
    )  # fmt: skip
    await send({"type": "http.response.body", "body": content})
