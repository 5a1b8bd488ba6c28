"""inference/constrained.py: whatever the model would rather say, the answer fits its form."""

from __future__ import annotations

import contextlib
import json
import re
import time
from typing import Any

import pytest
import torch

from inkstone.errors import UsageError
from inkstone.inference import Generator, SamplingConfig
from inkstone.inference.constrained import constraint_of
from inkstone.inference.engine import Engine
from inkstone.models import gpt2
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

pytest.importorskip("llguidance", reason="llguidance is not installed (extra `serve`)")
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "狗"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    texts = ["the cat said that the dog is 12 years old, 你好世界"] * 20
    config = TokenizerConfig(
        kind=request.param, **({"vocab_size": 320} if request.param == "bpe" else {})
    )
    return train(texts, config)


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> Generator:
    torch.manual_seed(0)
    shape = {"vocab_size": tokenizer.vocab_size + 3, "max_seq_len": 512, "d_model": 32}
    return Generator(gpt2.Model(gpt2.Config(**shape, n_layers=1, n_heads=2)).eval(), tokenizer)


@pytest.mark.parametrize("seed", range(4))
def test_json_fits_its_schema(generator: Generator, seed: int) -> None:
    config = SamplingConfig(json_schema=SCHEMA, max_tokens=400, seed=seed, temperature=1.0)
    (answer,) = generator.generate(["He"], config)
    assert answer.finish_reason == "stop"
    value = json.loads(answer.text)
    assert set(value) == {"name", "age", "kind"} and 0 <= value["age"] <= 150
    assert value["kind"] in ("cat", "狗") and len(value["name"]) <= 8


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_expressions_and_choices(generator: Generator, temperature: float) -> None:
    shared: dict[str, Any] = {"temperature": temperature, "max_tokens": 60, "seed": 1}
    pattern = r"[0-9]{3}-(ab|cd)+[xyz]"
    configs = [
        SamplingConfig(regex=pattern, **shared),
        SamplingConfig(choice=("yes", "no", "也许", 'a "quoted" \\ text'), **shared),
        SamplingConfig(**shared),
    ]
    first, second, free = generator.generate(["He", "He", "He"], configs)
    assert re.fullmatch(pattern, first.text) or first.finish_reason == "length"
    assert second.text in ("yes", "no", "也许", 'a "quoted" \\ text')
    assert second.finish_reason == "stop" and len(free.ids) > 0


def test_others_in_the_batch_and_guessing_are_not_touched(generator: Generator) -> None:
    from inkstone.inference.speculative import PromptLookup

    model, tokenizer = generator.model, generator.tokenizer
    configs = [
        SamplingConfig(json_schema=SCHEMA, max_tokens=300, seed=3),
        SamplingConfig(seed=3, max_tokens=30),
    ]
    expected = generator.generate(["the", "the"], configs)
    engine = Engine(model, tokenizer, guesser=PromptLookup())
    for config in configs:
        engine.submit(generator.encode("the"), config, end_ids=generator.end_ids)
    texts = ["", ""]
    while len(engine):
        for chunk in engine.step():
            texts[chunk.index] += chunk.text
    assert texts == [answer.text for answer in expected]


def test_no_control_token_fits_a_form(generator: Generator) -> None:
    """ "." is any character, and a control token is none."""
    bias = {i: 100.0 for i in generator.tokenizer.special_ids}  # type: ignore[union-attr]
    config = SamplingConfig(regex="(.|\n){20}", max_tokens=200, logit_bias=bias, seed=0)
    (answer,) = generator.generate(["He"], config)
    special = set(bias) - generator.end_ids
    assert not special & set(answer.ids) and len(answer.text) == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"regex": "(unclosed"},
        {"regex": "(" * 5000 + "a" + ")" * 5000},
        {"json_schema": {"type": "nothing"}},
        {"json_schema": {"$ref": "http://127.0.0.1:1/schema.json"}},
        {"choice": ("",)},
        {"choice": ("a",), "regex": "a"},
    ],
)
def test_nonsense_is_refused(generator: Generator, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        generator.generate(["He"], SamplingConfig(**wrong, max_tokens=20))


@pytest.mark.parametrize(
    "bomb",
    [
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "(a|b|ab)*" * 1000 + "c"},
        {"json_schema": {"type": "string", "pattern": "(((((a?){900}){900}){900}){900}){900}"}},
        {
            "json_schema": {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}] * 9}},
            }
        },
    ],
)
def test_bombs_are_followed_or_refused_soon(generator: Generator, bomb: dict[str, Any]) -> None:
    began = time.perf_counter()
    with contextlib.suppress(UsageError):
        generator.generate(["He"], SamplingConfig(**bomb, max_tokens=20))
    assert time.perf_counter() - began < 20


def test_a_form_that_breaks_ends_only_its_own_answer(generator: Generator) -> None:
    engine = Engine(generator.model, generator.tokenizer)
    config = SamplingConfig(regex="[a-z]{30}", max_tokens=40, seed=0)
    constraint = constraint_of(config, generator.tokenizer)
    assert constraint is not None
    prompt = generator.encode("He")
    engine.submit(prompt, config, constraint=constraint)
    other = engine.submit(prompt, SamplingConfig(max_tokens=20, seed=1))
    chunks = engine.step()
    constraint.take(min(generator.tokenizer.special_ids))  # type: ignore[union-attr]
    assert constraint.broken
    while len(engine):
        chunks += engine.step()
    ends = {chunk.index: chunk.finish_reason for chunk in chunks if chunk.finish_reason}
    assert ends == {0: "length", other: "length"}
    assert sum(len(chunk.ids) for chunk in chunks if chunk.index == other) == 20
