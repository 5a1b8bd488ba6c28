"""OpenAI's own client against the server: everything that it can ask of a small model."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inkstone.inference.config import SamplingConfig
from inkstone.serving.server import Server
from tests.serving.conftest import CONTEXT, small_model

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="a-key-of-the-test", max_retries=0)


ASKED = {"model": "small", "prompt": "It was", "max_tokens": 12}


def test_models_are_listed(client: Any) -> None:
    (one,) = client.models.list()
    assert one.id == "small" and client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError, match="known: small"):
        client.models.retrieve("smal")


def test_a_completion_is_what_the_library_generates(client: Any) -> None:
    found = client.completions.create(**ASKED, temperature=0)
    expected = small_model().generate("It was", temperature=0.0, max_tokens=12)
    assert found.choices[0].text == expected.text
    assert found.choices[0].finish_reason == expected.finish_reason == "length"
    assert found.usage.completion_tokens == 12 and found.usage.prompt_tokens == 7


def test_seeds_repeat_and_choices_differ(client: Any) -> None:
    several = {**ASKED, "n": 3, "seed": 5, "temperature": 1.0, "max_tokens": 30}
    first, again = (client.completions.create(**several) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert texts == [choice.text for choice in again.choices]
    assert len(set(texts)) == 3 and [c.index for c in first.choices] == [0, 1, 2]
    second = client.completions.create(**{**several, "seed": 6, "n": 1})
    assert second.choices[0].text == texts[1]  # the seeds count up


def test_a_stream_joins_to_the_whole(client: Any) -> None:
    settings = {**ASKED, "n": 2, "seed": 1, "max_tokens": 40}
    whole = client.completions.create(**settings)
    texts, reasons, spent = ["", ""], ["", ""], None
    options = {"stream": True, "stream_options": {"include_usage": True}}
    for event in client.completions.create(**settings, **options):
        spent = event.usage or spent
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert spent.completion_tokens == whole.usage.completion_tokens == 80


def test_stops_biases_and_several_prompts(client: Any) -> None:
    free = client.completions.create(**ASKED, temperature=0).choices[0].text
    stop = free[4:6]
    found = client.completions.create(**ASKED, temperature=0, stop=[stop, "\u0000never"])
    assert found.choices[0].text == free[: free.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    forced = client.completions.create(**ASKED, logit_bias={"72": 100}, temperature=0)
    assert len(set(forced.choices[0].text)) == 1
    pair = {**ASKED, "prompt": ["It was", [5, 6, 7]], "n": 1}
    with pytest.raises(openai.BadRequestError, match="prompt"):
        client.completions.create(**pair)
    both = client.completions.create(**{**ASKED, "prompt": ["It was", "So"]}, temperature=0)
    assert [c.index for c in both.choices] == [0, 1] and both.choices[0].text == free


def test_log_probabilities_and_echo(client: Any) -> None:
    asked = {**ASKED, "temperature": 0, "logprobs": 3}
    found = client.completions.create(**asked).choices[0]
    assert len(found.logprobs.tokens) == 12 and "".join(found.logprobs.tokens) == found.text
    expected = small_model().generate("It was", temperature=0.0, max_tokens=12, top_logprobs=3)
    for own, theirs in zip(expected.logprobs, found.logprobs.token_logprobs, strict=True):
        assert theirs == pytest.approx(own.logprob, abs=1e-4)
    assert all(len(top) == 3 for top in found.logprobs.top_logprobs)
    echoed = client.completions.create(**{**asked, "max_tokens": 0, "echo": True}).choices[0]
    assert echoed.text == "It was" and echoed.logprobs.tokens == list("It was")
    ids = small_model().generator.encode("It was") + expected.ids
    again = client.completions.create(
        model="small", prompt=ids, max_tokens=0, echo=True, logprobs=0
    ).choices[0]
    assert again.logprobs.token_logprobs[0] is None and again.logprobs.top_logprobs[0] is None
    assert all(top == {} for top in again.logprobs.top_logprobs[1:])
    assert again.logprobs.token_logprobs[7:] == pytest.approx(
        found.logprobs.token_logprobs, abs=1e-4
    )


def test_chat(client: Any) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    found = client.chat.completions.create(
        model="small", messages=messages, temperature=0, max_tokens=20
    )
    expected = small_model().conversation().reply(
        messages, SamplingConfig(temperature=0.0, max_tokens=20)
    )  # fmt: skip
    assert found.choices[0].message.content == expected.text
    assert found.choices[0].message.role == "assistant"
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    streamed = client.chat.completions.create(
        model="small", messages=parts, temperature=0, max_tokens=20, stream=True, logprobs=True,
        top_logprobs=2,
    )  # fmt: skip
    text, scored, roles = "", 0, []
    for event in streamed:
        delta = event.choices[0].delta
        text += delta.content or ""
        roles += [delta.role] if delta.role else []
        scored += len(event.choices[0].logprobs.content) if event.choices[0].logprobs else 0
    assert text == expected.text and scored == 20 and roles == ["assistant"]


def test_what_cannot_be_done_is_named(client: Any) -> None:
    create = client.chat.completions.create
    hello = [{"role": "user", "content": "Hello"}]
    for wrong, named in (
        ({"temperature": 3}, "temperature"),
        ({"n": 1000}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"stop": ["x"] * 100}, "stop"),
        ({"messages": [{"role": "user", "content": "x" * 40 * CONTEXT}]}, "context"),
    ):
        with pytest.raises(openai.BadRequestError, match=named):
            create(**{"model": "small", "messages": hello, **wrong})
    with pytest.raises(openai.NotFoundError, match="known: small"):
        create(model="large", messages=hello)
    with pytest.raises(openai.BadRequestError, match="cannot embed"):
        client.embeddings.create(model="small", input="x")


def test_a_key_is_needed(server: Server) -> None:
    for key in ("a-key-of-the-tesu", "a-key-of-the-tes", "a-key-of-the-test2"):
        other = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError):
            other.models.list()


def test_answers_that_fit_a_form(client: Any) -> None:
    pytest.importorskip("llguidance", reason="llguidance is not installed (extra `serve`)")
    create = client.chat.completions.create
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    form = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    asked = {"model": "small", "messages": [{"role": "user", "content": "Hello"}], "seed": 1}
    for streamed in (False, True):
        found = create(**asked, response_format=form, max_tokens=100, stream=streamed)
        if streamed:
            text = "".join(event.choices[0].delta.content or "" for event in found)
        else:
            text = found.choices[0].message.content
        assert set(json.loads(text)) == {"n"}
    chosen = create(**asked, extra_body={"choice": ["yes", "no"]})
    assert chosen.choices[0].message.content in ("yes", "no")
    assert chosen.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="form"):
        create(**asked, extra_body={"regex": "(unclosed"})


def test_responses(client: Any) -> None:
    asked = {"model": "small", "input": "Hello", "max_output_tokens": 20, "temperature": 0}
    messages = [{"role": "user", "content": "Hello"}]
    expected = small_model().chat(messages, temperature=0.0, max_tokens=20).text
    found = client.responses.create(**asked)
    assert found.output_text == expected and found.status == "incomplete"
    assert found.usage.output_tokens == 20
    again = client.responses.create(**{**asked, "input": messages})
    assert again.output_text == expected
    events = list(client.responses.create(**asked, stream=True))
    assert [e.sequence_number for e in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == expected == events[-1].response.output_text
    assert events[0].type == "response.created" and events[-1].type == "response.incomplete"
    talk = [*messages, {"role": "assistant", "content": expected}, {"role": "user", "content": "?"}]
    told = client.responses.create(**{**asked, "input": talk}, instructions="Be short.")
    own = small_model().chat(
        [{"role": "system", "content": "Be short."}, *talk], temperature=0.0, max_tokens=20
    )
    assert told.output_text == own.text
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.responses.create(**asked, tools=[{"type": "web_search"}])
