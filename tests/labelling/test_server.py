"""The page's server: what it does for its own page, and for nobody else."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from inkstone.labelling import server as module
from inkstone.labelling.server import PAGE, Desk, Server, policy
from inkstone.labelling.store import Store
from tests.labelling.conftest import Maker, sentences

TRUTH = {row["text"]: row["truth"] for row in sentences(200)}


class Client:
    """A browser of this machine, or what pretends to be one."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def ask(
        self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=10)
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        if content is not None:
            headers.setdefault("Content_Type", "application/json")
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        token = self.server.token if token is None else token
        connection.request(method, f"/{token}/{path}", content, names)
        answer = connection.getresponse()
        found = answer.status, dict(answer.headers), answer.read()
        connection.close()
        return found

    def state(self) -> dict[str, Any]:
        return json.loads(self.ask("GET", "api/state")[2])

    def post(self, action: str, body: Any) -> dict[str, Any]:
        status, _, content = self.ask("POST", f"api/{action}", body)
        assert status == 200, content
        return json.loads(content)


@pytest.fixture
def client(project: Maker) -> Iterator[Client]:
    with Server(Desk(project(), refit=4)) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield Client(server)
        server.shutdown()
        thread.join()
    server.desk.project.store.close()


def test_a_session(client: Client) -> None:
    state = client.state()
    assert state["labels"] == ["money", "sport"] and state["done"] == 0 and state["total"] == 200
    assert not state["can_undo"] and state["curve"] == [] and state["example"]["guess"] is None
    checks = 0
    for done in range(1, 61):
        example = state["example"]
        checks += example["check"]
        state = client.post("label", {"id": example["id"], "label": TRUTH[example["text"]]})
        assert state["done"] == done and state["example"]["id"] != example["id"]
    assert checks == 12 and state["counts"]["money"] + state["counts"]["sport"] == 60
    assert state["curve"][-1]["accuracy"] > 0.7 and len(state["curve"]) > 5
    guess = state["example"]["guess"]
    assert guess["label"] in ("money", "sport") and 0.5 <= guess["confidence"] <= 1
    again = Store(client.server.desk.project.store.path)
    assert len(again.said) == 60, "every label was on the disk at once"


def test_undo_and_skip(client: Client) -> None:
    first = client.state()["example"]
    second = client.post("label", {"id": first["id"], "label": "sport"})["example"]
    third = client.post("skip", {"id": second["id"]})
    assert third["skipped"] == 1 and third["example"]["id"] not in (first["id"], second["id"])
    back = client.post("undo", {})
    assert back["example"]["id"] == second["id"] and back["skipped"] == 0
    back = client.post("undo", {})
    assert back["example"]["id"] == first["id"] and back["done"] == 0 and not back["can_undo"]
    assert client.post("undo", {})["example"]["id"] == first["id"]


def test_to_the_last_text(client: Client) -> None:
    state, seen = client.state(), set()
    while example := state["example"]:
        seen.add(example["id"])
        action = (
            ("skip", {}) if len(seen) % 9 == 0 else ("label", {"label": TRUTH[example["text"]]})
        )
        state = client.post(action[0], {"id": example["id"], **action[1]})
    assert len(seen) == state["done"] + state["skipped"] == 200
    assert client.post("undo", {})["example"] is not None


def test_what_cannot_be_done(client: Client) -> None:
    id = client.state()["example"]["id"]
    client.post("label", {"id": id, "label": "money"})
    for action, body in [
        ("label", {"id": id, "label": "sport"}),  # twice
        ("skip", {"id": id}),
        ("label", {"id": "0" * 32, "label": "sport"}),
        ("label", {"id": client.state()["example"]["id"], "label": "cats"}),
        ("label", {"id": id}),
        ("label", {"id": 7, "label": "sport"}),
        ("undo", {"id": id}),
    ]:
        status, _, content = client.ask("POST", f"api/{action}", body)
        assert status == 409 and "error" in json.loads(content), (action, body)
    assert client.state()["done"] == 1


@pytest.mark.parametrize(
    ("status", "method", "path", "body", "more"),
    [
        (404, "GET", "api/state", None, {"token": "wrong"}),
        (404, "GET", "api/state", None, {"token": ""}),
        (404, "GET", "", None, {"token": "%C3%A9"}),
        (404, "GET", "../api/state", None, {}),
        (404, "GET", "page.html", None, {}),
        (404, "POST", "label", {}, {}),
        (404, "POST", "api/export", {}, {}),
        (421, "GET", "api/state", None, {"Host": "evil.example"}),
        (421, "GET", "", None, {"Host": "127.0.0.1"}),
        (403, "POST", "api/undo", {}, {"Origin": "https://evil.example"}),
        (403, "POST", "api/undo", {}, {"Origin": "null"}),
        (415, "POST", "api/undo", {}, {"Content_Type": "text/plain"}),
        (415, "POST", "api/undo", b"{}", {"Transfer_Encoding": "gzip"}),
        (411, "POST", "api/undo", b"{}", {"Content_Length": "-2"}),
        (413, "POST", "api/undo", b"{}", {"Content_Length": "20000"}),
        (400, "POST", "api/undo", b"[]", {}),
        (400, "POST", "api/undo", b"\xff", {}),
        (400, "POST", "api/undo", b"[" * 16000, {}),
        (501, "PUT", "api/undo", {}, {}),
    ],
)
def test_who_is_refused(
    client: Client, status: int, method: str, path: str, body: Any, more: dict[str, str]
) -> None:
    token = more.pop("token", None) if "token" in more else None
    found, headers, content = client.ask(method, path, body, token, **more)
    assert found == status and client.server.token.encode() not in content
    assert "Access-Control-Allow-Origin" not in headers
    assert client.state()["done"] == 0


def test_headers_of_every_answer(client: Client) -> None:
    for path, status in (("", 200), ("api/state", 200), ("nothing", 404)):
        found, headers, _ = client.ask("GET", path)
        assert found == status and headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'sha")
        assert "Python" not in headers["Server"]
    assert client.server.server_address[0] == "127.0.0.1"


def test_a_token_of_strange_bytes(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=10) as raw:
        host = f"Host: 127.0.0.1:{client.server.port}"
        raw.sendall(f"GET /\xff\u00e9/ HTTP/1.0\r\n{host}\r\n\r\n".encode("latin-1"))
        assert b" 404 " in raw.makefile("rb").readline()


def test_a_client_that_says_nothing_is_let_go(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Handler, "timeout", 0.05)
    with socket.create_connection(("127.0.0.1", client.server.port), timeout=10) as quiet:
        quiet.sendall(b"GET /")
        assert quiet.recv(100) == b"", "the connection was closed"
    assert client.state()["total"] == 200


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_needs_nothing_and_writes_no_html() -> None:
    page = PAGE.read_text(encoding="utf-8")
    tags = Tags()
    tags.feed(page)
    for tag, attributes in tags.found:
        assert not {"style", "src", "srcset", "onclick", "onload"} & attributes.keys(), tag
        assert attributes.get("href", "data:,") == "data:,"
    assert sum(tag == "script" for tag, _ in tags.found) == 1
    for risk in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
        assert risk not in page
    assert re.findall(r"https?://[^\"' ]+", page) == ["http://www.w3.org/2000/svg"]
    assert "'unsafe-inline'" not in policy(page) and policy(page).count("sha256-") == 2
    words = re.search(r"  en: \{(.*)\n  zh: \{(.*)\},\n\};", page, re.DOTALL)
    assert words is not None
    english, chinese = words.groups()
    keys = re.compile(r"(?:^|[,{]|\n)\s*([a-z]+):")
    assert set(keys.findall(english)) == set(keys.findall(chinese)) > {"undo", "skip", "lost"}
