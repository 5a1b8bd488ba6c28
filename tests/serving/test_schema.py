"""Requests made from the server's own description, sound and broken, with NULs: no 5xx, no hang."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inkstone.serving.server import Server
from tests.serving.conftest import Start, small_model
from tests.serving.test_guard import ask

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
EXAMPLES = 12  # of each address and mode


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start(("small", small_model()), request_timeout_s=20.0)


@pytest.fixture(scope="module")
def schema(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ask(server, None, path="/openapi.json", method="GET")[2])
    return found


def test_the_description_names_every_address(schema: dict[str, Any]) -> None:
    verbs = ("chat/completions", "completions", "embeddings", "models", "classify", "tag", "answer",
             "translate", "summarize", "attribute", "attention", "runs", "runs/{name}")  # fmt: skip
    plain = {"/tokenize", "/detokenize", "/health/live", "/health/ready", "/metrics"}
    assert plain | {f"/v1/{verb}" for verb in verbs} <= set(schema["paths"])
    assert "ChatMessage" in schema["components"]["schemas"]


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_nothing_breaks_it(server: Server, schema: dict[str, Any], mode: str) -> None:
    loaded = schemathesis.openapi.from_dict(schema)
    kind = schemathesis.GenerationMode(mode)
    statuses: set[int] = set()
    for result in loaded.get_all_operations():
        operation = result.ok()
        if mode == "negative" and not operation.body:
            continue  # there is nothing to get wrong
        _try(server, operation.as_strategy(generation_mode=kind), statuses)
    assert (200 if mode == "positive" else 400) in statuses, statuses


def _try(server: Server, cases: Any, statuses: set[int]) -> None:
    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(cases)
    def one(case: Any) -> None:
        case.headers = {}
        response = case.call(base_url=server.url, timeout=30)
        statuses.add(response.status_code)
        assert response.status_code < 500, (response.status_code, response.text[:500])
        if response.status_code >= 400 and response.headers["content-type"] == "application/json":
            assert response.json()["error"]["message"]

    one()


@settings(max_examples=60, deadline=None, database=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "max_tokens", "temperature", "top_p", "top_k", "n", "stop",
                         "seed", "logprobs", "echo", "logit_bias", "stream", "suffix"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
            lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=3), x, max_size=3),
            max_leaves=6,
        ),
    )
)  # fmt: skip
def test_any_values(server: Server, body: dict[str, Any]) -> None:
    raw = json.dumps({"max_tokens": 2, **body}).encode()
    status, _, content = ask(server, raw)
    assert status < 500, (status, content[:300], raw)
