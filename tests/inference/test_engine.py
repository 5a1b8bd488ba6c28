"""inference/engine.py: whoever else is being answered, however little room there is and whatever is
guessed ahead, every request gets the answer that it gets alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from inkstone.errors import ModelError, UsageError
from inkstone.inference import Generator, SamplingConfig
from inkstone.inference.engine import Engine
from inkstone.inference.speculative import PromptLookup
from inkstone.inference.stream import Chunk
from inkstone.models import gpt2, lamda, llama, lstm
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train

V = 60
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "llama": (llama, {"n_heads": 4, "n_kv_heads": 2, "sliding_window": 9}),
    "lamda": (lamda, {"n_heads": 4}),
    "lstm": (lstm, {}),
    # of a width that compiled code reads
    "gpt2, compiled": (gpt2, {"n_heads": 4, "d_model": 64}),
    "llama, compiled": (
        llama, {"n_heads": 4, "n_kv_heads": 2, "d_model": 64, "d_ff": 96, "sliding_window": 9}
    ),
}  # fmt: skip


def _model(family: Any, **shape: Any) -> Any:
    torch.manual_seed(0)
    config = family.Config(
        **{"vocab_size": V, "max_seq_len": 96, "d_model": 32, "n_layers": 2} | shape
    )
    model = family.Model(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(8.0)  # scores far enough apart that rounding cannot swap them
    return model.eval()


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> Any:
    family, shape = FAMILIES[request.param]
    return _model(family, **shape)


def _prompts(n: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    beginning = [chance.randrange(V) for _ in range(20)]
    return [
        beginning[: chance.randint(1, 20)]
        + [chance.randrange(V) for _ in range(chance.randint(0, 40))]
        for _ in range(n)
    ]


def _settings(n: int) -> list[SamplingConfig]:
    kinds: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 1.0, "top_k": 5},
        {"temperature": 0.7, "repetition_penalty": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "logprobs": True},
    ]
    return [SamplingConfig(seed=i, max_tokens=7 + 5 * (i % 5), **kinds[i % 4]) for i in range(n)]


def _run(engine: Engine, wanted: dict[int, Any] | None = None) -> dict[int, list[Chunk]]:
    found: dict[int, list[Chunk]] = {}
    for _ in range(10_000):
        if not len(engine):
            return found
        for chunk in engine.step():
            found.setdefault(chunk.index, []).append(chunk)
    raise AssertionError("it never ends")


def _ids(chunks: Sequence[Chunk]) -> list[int]:
    assert all(c.finish_reason is None for c in chunks[:-1]) and chunks[-1].finish_reason
    return [i for chunk in chunks for i in chunk.ids]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"most": 3, "tokens_per_step": 7},  # prompts in pieces
        {"most": 6, "tokens_per_step": 32, "cache_bytes": 1},  # room for one of the longest
        {"guesser": PromptLookup(shortest=1)},
    ],
    ids=["roomy", "small steps", "little memory", "guessing"],
)
def test_answers_are_those_of_each_request_alone(model: Any, options: dict[str, Any]) -> None:
    prompts, settings = _prompts(12), _settings(12)
    expected = [
        Generator(model, None).generate([prompt], [own], end_ids=[3])[0]
        for prompt, own in zip(prompts, settings, strict=True)
    ]
    engine = Engine(model, **options)
    numbers = [
        engine.submit(prompt, own, end_ids=[3])
        for prompt, own in zip(prompts, settings, strict=True)
    ]
    found = _run(engine)
    for number, answer in zip(numbers, expected, strict=True):
        assert _ids(found[number]) == answer.ids
        assert found[number][-1].finish_reason == answer.finish_reason
        scores = [s.logprob for chunk in found[number] for s in chunk.logprobs]
        assert scores == pytest.approx([s.logprob for s in answer.logprobs], abs=1e-3)
    pages = engine.scheduler.pages
    assert pages.available == pages.n_pages


def test_requests_come_and_go(model: Any) -> None:
    prompts, settings = _prompts(20, seed=1), _settings(20)
    alone = [
        Generator(model, None).generate([prompt], [own])[0].ids
        for prompt, own in zip(prompts, settings, strict=True)
    ]
    chance = random.Random(2)
    engine = Engine(model, most=4, tokens_per_step=24, cache_bytes=40_000)
    found: dict[int, list[int]] = {}
    waiting = list(range(20))
    cancelled: set[int] = set()
    while waiting or len(engine):
        if waiting and chance.random() < 0.4:
            place = waiting.pop(0)
            assert engine.submit(prompts[place], settings[place]) == place
        if chance.random() < 0.05 and (place := chance.randrange(20)) not in waiting:
            engine.cancel(place)
            cancelled.add(place)
        for chunk in engine.step():
            assert chunk.index not in cancelled
            found.setdefault(chunk.index, []).extend(chunk.ids)
    for place, ids in enumerate(alone):
        if place in cancelled:
            assert found.get(place, []) == ids[: len(found.get(place, []))]
        else:
            assert found[place] == ids


def test_a_common_beginning_is_read_once() -> None:
    model = _model(gpt2, n_heads=4)
    engine = Engine(model)
    read: list[int] = []
    hidden = model.hidden
    model.hidden = lambda ids, **options: read.append(ids.shape[1]) or hidden(ids, **options)
    one = SamplingConfig(max_tokens=1, temperature=0.0)
    for last in range(3):
        engine.submit([*range(50), last], one)
        _run(engine)
    assert read == [51, 3, 3]  # three whole pages of 16 were found
    model.hidden = hidden


def test_guessing_takes_fewer_passes() -> None:
    """What repeats itself is guessed; the answer is the same."""
    model = _model(gpt2, n_heads=4)
    config = SamplingConfig(max_tokens=90, temperature=0.0)
    steps, answers = [], []
    for guesser in (None, PromptLookup()):
        engine = Engine(model, guesser=guesser)
        engine.submit([1, 2, 3], config)
        n, ids = 0, []
        while len(engine):
            n += 1
            ids += [i for chunk in engine.step() for i in chunk.ids]
        steps.append(n)
        answers.append(ids)
    assert answers[0] == answers[1] and len(answers[0]) == 90
    assert len(set(answers[0][-20:])) < 10, "this model does not repeat itself; choose another seed"
    assert steps[0] == 90 and steps[1] < 60


def test_text_comes_in_whole_characters_and_ends_at_stop_texts() -> None:
    tokenizer = train(["any text"], TokenizerConfig(kind="byte"))
    model = _model(gpt2, n_heads=4, vocab_size=tokenizer.vocab_size)
    prompts = [tokenizer.encode(text) for text in ("It was", "我们", "")]
    prompts = [[tokenizer.eos_id, *ids] for ids in prompts]
    config = SamplingConfig(temperature=1.0, seed=4, max_tokens=40, stop=("e", "é"))
    expected = [Generator(model, tokenizer).generate([p], [config])[0] for p in prompts]
    engine = Engine(model, tokenizer)
    for prompt in prompts:
        engine.submit(prompt, config, end_ids=[tokenizer.eos_id])
    for number, chunks in _run(engine).items():
        assert "".join(c.text for c in chunks) == expected[number].text
        assert chunks[-1].finish_reason == expected[number].finish_reason


def test_misuse_is_named() -> None:
    engine = Engine(_model(gpt2, n_heads=4))
    for prompt, problem in (([], "no tokens"), ([V], "vocabulary"), ([1] * 96, "context")):
        with pytest.raises(UsageError, match=problem):
            engine.submit(prompt, SamplingConfig())
    with pytest.raises(UsageError, match="do not fit"):
        Engine(engine.model, most=20, tokens_per_step=10)
    assert not len(engine) and engine.step() == []
    engine.cancel(17)


def test_after_a_failure_every_request_goes_on() -> None:
    model = _model(gpt2, n_heads=4)
    expected = Generator(model, None).generate([[1, 2], [5]], SamplingConfig(temperature=0.0))
    engine = Engine(model)
    for prompt in ([1, 2], [5]):
        engine.submit(prompt, SamplingConfig(temperature=0.0))
    chunks = engine.step()
    good, model.logits = model.logits, lambda x: torch.full((len(x), V), torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        engine.step()
    model.logits = good
    while len(engine):
        chunks += engine.step()
    for number in (0, 1):
        assert [i for c in chunks if c.index == number for i in c.ids] == expected[number].ids
