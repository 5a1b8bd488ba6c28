"""What strangers, broken clients and attackers send: every HTTP case of the threat list gets an
answer that is no 5xx, or a closed connection, and the server goes on."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from typing import Any

import pytest

from inkstone.serving import connection as connections
from inkstone.serving.server import Server
from tests.serving.conftest import CONTEXT, Start, small_model

KEY = "a-key-of-the-test"
BODY = {"model": "small", "prompt": "It was", "max_tokens": 2}


def ask(
    server: Server, body: Any = BODY, *, path: str = "/v1/completions", method: str = "POST",
    **headers: str,
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, raw, given)
    response = connection.getresponse()
    found = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    connection.close()
    return found


def raw(server: Server, sent: bytes, wait_s: float = 20) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait_s) as client:
        client.sendall(sent)
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
            if b"\r\n\r\n" in b"".join(parts):
                break
        return b"".join(parts)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"[]", 400),
        (b'"text"', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"prompt": "a", "prompt": "b"}', 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "a\\u0000b", "max_tokens": 1}', 200),
        (b'{"temperature": NaN, "prompt": "a"}', 400),
        (b'{"temperature": 1e999, "prompt": "a"}', 400),
        (b'{"max_tokens": 1e3, "prompt": "a"}', 400),
        (b'{"max_tokens": 99999999999999999999999999, "prompt": "a"}', 400),
        (b'{"max_tokens": true, "prompt": "a"}', 400),
        (b'{"max_tokens": "5", "prompt": "a"}', 400),
        (b'{"prompt": [1, -1]}', 400),
        (b'{"prompt": [271, 99999]}', 400),
        (b'{"prompt": []}', 400),
        (b'{"prompt": [[]]}', 400),
        (b'{"prompt": "a", "n": 0}', 400),
        (b'{"prompt": "a", "logprobs": 1000}', 400),
        (b'{"prompt": "a", "logit_bias": {"x": 1}, "max_tokens": 1}', 200),
        (b'{"prompt": "a", "logit_bias": {"1": "much"}}', 400),
        (b'{"prompt": "a", "sotp": "x"}', 400),
        (b'{"prompt": "a", "suffix": "b"}', 400),
        (b'{"prompt": "<|endoftext|><|im_start|>", "max_tokens": 1}', 200),
        (json.dumps({"prompt": "x" * 1_000_000}).encode(), 400),
        (json.dumps({"prompt": ["x"] * 100_000}).encode(), 400),
        (json.dumps({"prompt": "a", "stop": ["y" * 2000]}).encode(), 400),
    ],
)
def test_bodies(server: Server, body: bytes, status: int) -> None:
    found, _, content = ask(server, body)
    assert found == status, content[:300]
    if status >= 400:
        error = json.loads(content)["error"]
        assert error["message"] and error["type"] and len(content) < 2000
        assert b"Traceback" not in content


def test_messages(server: Server) -> None:
    path = "/v1/chat/completions"
    for messages in (
        [{"role": "user", "content": "\u0000"}] * 100_000,
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/"}}],
            }
        ],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
        [{"role": "user"}, 7],
        [{"role": "user", "content": "a", "tool_calls": []}],
    ):
        assert ask(server, {"messages": messages}, path=path)[0] == 400
    many = [{"role": "user", "content": "a"}] * 9_999
    assert ask(server, {"messages": many}, path=path)[0] == 400  # they do not fit, and it says so
    assert ask(server, {"messages": many[:3], "max_tokens": 1}, path=path)[0] == 200


def test_addresses_and_methods(server: Server) -> None:
    assert ask(server, path="/v1/nothing")[0] == 404
    assert ask(server, path="/..%2f..%2fetc/passwd", method="GET", body=None)[0] == 404
    assert ask(server, method="GET", body=None)[0] == 405
    assert ask(server, method="PUT")[0] == 405
    assert ask(server, method="BREW")[0] == 405
    assert ask(server, path="/" + "a" * 60_000)[0] in (400, 404, 414)
    ranges = "bytes=" + ",".join(["0-0"] * 10_000)
    for path in ("/", "/v1/models"):
        assert ask(server, path=path, method="GET", body=None, Range=ranges)[0] == 200
    assert ask(server, Content_Type="text/plain")[0] == 415
    assert ask(server, b"\x1f\x8b", Content_Encoding="gzip")[0] == 415


def test_other_names_and_other_pages(server: Server) -> None:
    assert ask(server, Host="evil.example")[0] == 421
    assert ask(server, Host=f"127.0.0.1.evil.example:{server.port}")[0] == 421
    for origin in ("https://evil.example", "null", f"http://localhost.evil:{server.port}"):
        assert ask(server, Origin=origin, Content_Type="text/plain")[0] == 403
    own = f"http://127.0.0.1:{server.port}"
    assert ask(server, Origin=own)[0] == 200
    assert "access-control-allow-origin" not in ask(server, Origin=own)[1]


def test_pages_that_may(start: Start) -> None:
    server = start(("small", small_model()), origins=("https://a.example",), hosts=("box.local",))
    status, headers, _ = ask(server, Origin="https://a.example", Host="box.local:80")
    assert status == 200 and headers["access-control-allow-origin"] == "https://a.example"
    status, headers, _ = ask(server, method="OPTIONS", body=None, Origin="https://a.example")
    assert status == 204 and "authorization" in headers["access-control-allow-headers"]
    assert ask(server, Origin="https://b.example")[0] == 403


def test_keys(server: Server) -> None:
    for value in ("", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY[:-1]}", f"Bearer {KEY}x",
                  "Bearer \xe9\xe8"):  # fmt: skip
        status, headers, content = ask(server, Authorization=value)
        assert status == 401 and headers["www-authenticate"] == "Bearer"
        assert KEY.encode() not in content
    for path in ("/v1/models", "/metrics", "/openapi.json", "/health/ready"):
        assert ask(server, path=path, method="GET", body=None, Authorization="")[0] == 401
        assert ask(server, path=path, method="GET", body=None)[0] == 200
    assert ask(server, path="/health/live", method="GET", body=None, Authorization="")[0] == 200


def test_lengths_that_lie(server: Server) -> None:
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += f"Authorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    for more in (
        "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        "Content-Length: -5\r\n\r\n",
        "Content-Length: 99999999999999999999\r\n\r\n",
        f"Content-Length: {1 << 30}\r\n\r\n",
        "Transfer-Encoding: gzip\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "X: " + "y" * 200_000 + "\r\n\r\n",
        "".join(f"X{i}: y\r\n" for i in range(100_000)) + "\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ):
        try:
            found = raw(server, (head + more).encode())
        except (ConnectionError, TimeoutError) as error:
            assert isinstance(error, ConnectionError), "it hangs"
            continue
        assert not found or found.startswith(b"HTTP/1.1 4"), found[:200]
    assert ask(server)[0] == 200


@pytest.mark.parametrize("start_", ["GET / HTTP/1.1\r\nX: ", "GET /", "BREW"])
def test_heads_that_never_end(server: Server, start_: str) -> None:
    """A gigabyte of one header, of an address, of a method: given up long before."""
    sent, part = 0, b"y" * (1 << 16)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(start_.encode())
        with pytest.raises(OSError):
            while sent < 1 << 30:
                client.sendall(part)
                sent += len(part)
    assert sent < 1 << 29 and ask(server)[0] == 200


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", (0, -1, 17, 1 << 70, 1.0, "1", None, True)),
        ("best_of", (0, 17, 2, "1")),
        ("max_tokens", (-1, 1 << 70, 1.0, "1", None, [])),
        ("temperature", (-0.1, 2.1, 1e308, "1", None, [])),
        ("top_p", (0, -1, 1.1, "1", None)),
        ("top_k", (0, -1, 1.5, "1")),
        ("min_p", (-0.1, 1.1, "0")),
        ("repetition_penalty", (0, -1, 101, "1")),
        ("presence_penalty", (-2.1, 2.1, "1", None)),
        ("frequency_penalty", (-2.1, 2.1, "1", None)),
        ("logprobs", (-1, 21, 1 << 70, "1", True)),
        ("logit_bias", ({"1": 101}, {"1": "x"}, [], {str(i): 1 for i in range(2_000)})),
        ("stop", (7, [7], ["x"] * 1_000, ["y" * 100_000], {})),
        ("seed", (-1, 1 << 63, 1 << 200, 1.0, "1")),
        ("choice", ([], [""], ["x"] * 2_000, [7], "x")),
        ("regex", ("(", "x" * 100_000, 7)),
        ("response_format", ({"type": "xml"}, {}, [], "json", {"type": "json_schema", "a": 1})),
        ("stream_options", ({"include_usage": 1}, [], {"x": 1})),
    ],
)
def test_settings_out_of_range(server: Server, field: str, values: tuple[Any, ...]) -> None:
    for value in values:
        status, _, content = ask(server, BODY | {field: value})
        if status == 200:
            assert value in (None, {}) or field == "response_format", (field, value)
            continue
        assert status == 400 and json.loads(content)["error"]["message"], (field, value, content)


def test_a_prompt_of_a_hundred_contexts(server: Server) -> None:
    for prompt in ("x" * 100 * CONTEXT, [5] * 100 * CONTEXT, ["a", "x" * 100 * CONTEXT]):
        status, _, content = ask(server, BODY | {"prompt": prompt})
        assert status == 400 and b"context" in content
    said = [{"role": "user", "content": "x" * 100 * CONTEXT}]
    chat, responses = "/v1/chat/completions", "/v1/responses"
    for path, body in (
        (chat, {"messages": said}),
        (responses, {"input": said}),
        (responses, {"input": "x" * 100 * CONTEXT}),
    ):
        status, _, content = ask(server, body, path=path)
        assert status == 400 and b"context" in content


def test_control_tokens_in_a_text_are_text(server: Server) -> None:
    """They have as many tokens as characters, so none of them became a control token."""
    for text in ("<|endoftext|>", "<|im_start|>system", "<|user|><|end|>"):
        found = json.loads(ask(server, BODY | {"prompt": text})[2])
        assert found["usage"]["prompt_tokens"] == 1 + len(text)


@pytest.mark.parametrize(
    "form",
    [
        {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"},
        {"regex": "(a|aa)+" * 200},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {
            "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 8} for i in range(20)}
            | {"d20": {"type": "string"}}, "$ref": "#/$defs/d0"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {
            "type": "array", "minItems": 10**9, "items": {"type": "string"}}}}},
    ],
)  # fmt: skip
def test_forms_that_are_bombs(server: Server, form: dict[str, Any]) -> None:
    """Followed or refused, and others are answered meanwhile and afterwards."""
    pytest.importorskip("llguidance", reason="llguidance is not installed (extra `serve`)")
    status, _, content = ask(server, BODY | form)
    assert status in (200, 400), content[:300]
    assert ask(server)[0] == 200


def test_what_comes_too_slowly_is_dropped(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_TIMEOUT_S", 0.3)
    server = start(("small", small_model()), body_timeout_s=0.3)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/completions HT")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(100) == b""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += "Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    assert raw(server, head.encode()).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began < 10
    assert ask(server)[0] == 200


def test_a_body_that_never_ends(start: Start) -> None:
    server = start(("small", small_model()), max_body_bytes=10_000)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    head += "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"".join(b"400\r\n" + b" " * 1024 + b"\r\n" for _ in range(30))
    assert raw(server, head.encode() + chunks).startswith(b"HTTP/1.1 413")
    assert ask(server, {"prompt": "x" * 20_000})[0] == 413
