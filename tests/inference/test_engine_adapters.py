"""Requests with several adapters in one engine: each gets what a model merged for it says, whoever
else is in the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from inkstone.compression.quantize import choose, quantize_model
from inkstone.errors import ModelError, UsageError
from inkstone.inference import Generator, SamplingConfig
from inkstone.inference.engine import Engine
from inkstone.inference.speculative import PromptLookup
from inkstone.models import gpt2, lamda, llama, lstm, mixtral
from inkstone.nn import compiled_decoder, lora
from inkstone.nn.adapters import AdaptedModel, with_adapter
from inkstone.nn.compiled_adapters import AdaptedDecoder
from inkstone.nn.lora import Pair

V = 60
GROUPED = {"n_heads": 4, "n_kv_heads": 2, "d_ff": 96}
FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "lamda": (lamda, {"n_heads": 4}),
    "mixtral": (mixtral, GROUPED),
    "gpt2, compiled": (gpt2, {"n_heads": 4, "d_model": 64}),
    "llama, compiled": (
        llama,  # keys and values of one panel
        {**GROUPED, "n_kv_heads": 1, "d_model": 64, "sliding_window": 9},
    ),
}


def model_of(family: Any, **shape: Any) -> Any:
    torch.manual_seed(0)
    config = {"vocab_size": V, "max_seq_len": 96, "d_model": 32, "n_layers": 2} | shape
    model = family.Model(family.Config(**config))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(8.0)  # scores far enough apart that rounding cannot swap them
    return model.eval()


def pairs_of(model: Any, seed: int, rank: int, *maps: str) -> dict[str, Pair]:
    """An adapter that does something; of the maps that are named, or of all."""
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for name, linear in lora.maps(model).items():
        if not maps or name.rpartition(".")[2] in maps:
            d_out, d_in = linear.weight.shape
            a, b = (
                torch.randn(rank, d_in, generator=chance),
                torch.randn(d_out, rank, generator=chance),
            )
            found[name] = Pair(a / d_in**0.5, 0.3 * b, 2.0)
    return found


def adapters_of(model: Any) -> dict[str, dict[str, Pair]]:
    """Of several ranks, one of two maps alone."""
    return {
        "one": pairs_of(model, 1, 4), "two": pairs_of(model, 2, 3, "v", "o"),
        "three": pairs_of(model, 3, 17),
    }  # fmt: skip


def merged(model: Any, pairs: dict[str, Pair]) -> Any:
    plain = lora.merged(model)
    lora.put(plain, pairs)
    lora.remove(plain, keep=True)
    return plain.eval()


def prompts(n: int) -> list[list[int]]:
    """Some begin alike."""
    chance = random.Random(0)
    beginning = [chance.randrange(V) for _ in range(33)]
    return [beginning[: 16 * (i % 3)] + [chance.randrange(V) for _ in range(1 + i)]
            for i in range(n)]  # fmt: skip


def run(engine: Engine) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    while len(engine):
        for chunk in engine.step():
            found.setdefault(chunk.index, []).extend(chunk.ids)
    return found


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> Any:
    family, shape = FAMILIES[request.param]
    return model_of(family, **shape)


GREEDY = SamplingConfig(temperature=0.0, max_tokens=16)
WHO = (None, "one", "two", "three")


@pytest.mark.parametrize(
    "options",
    [{}, {"most": 3, "tokens_per_step": 7}, {"guesser": PromptLookup(shortest=1)}],
    ids=["roomy", "small steps", "guessing"],
)
def test_answers_are_those_of_merged_models(model: Any, options: dict[str, Any]) -> None:
    adapters = adapters_of(model)
    alone = {None: model} | {name: merged(model, pairs) for name, pairs in adapters.items()}
    engine = Engine(model, adapters=adapters, **options)
    compiled = compiled_decoder.reader(model) is not None
    assert type(engine._reader) is (AdaptedDecoder if compiled else AdaptedModel)
    asked = [(WHO[i % 4], prompt) for i, prompt in enumerate(prompts(12))]
    asked += [(name, asked[0][1]) for name in WHO]  # one prompt with every adapter
    numbers = [engine.submit(prompt, GREEDY, adapter=name) for name, prompt in asked]
    found = run(engine)
    for number, (name, prompt) in zip(numbers, asked, strict=True):
        expected = Generator(alone[name], None).generate([prompt], [GREEDY], end_ids=[])[0].ids
        assert found[number] == expected, name
    last = [tuple(found[number]) for number in numbers[-4:]]
    assert len(set(last)) == 4, "the adapters do nothing"
    pages = engine.scheduler.pages
    assert pages.available == pages.n_pages


def test_a_beginning_is_never_shared_across_adapters(model: Any) -> None:
    """Read one after the other, with all of a prompt but its end in pages already."""
    adapters = adapters_of(model)
    engine = Engine(model, adapters=adapters)
    prompt = [*range(50)]
    answers = []
    for name in (*WHO, *WHO):
        number = engine.submit(prompt, GREEDY, adapter=name)
        answers.append(run(engine)[number])
        fresh = Engine(model, adapters=adapters)
        fresh.submit(prompt, GREEDY, adapter=name)
        assert answers[-1] == run(fresh)[0]
    assert answers[:4] == answers[4:] and len(set(map(tuple, answers))) == 4


# --- to the bit, in every format -----------------------------------------------------------------


@contextmanager
def scores(engine: Engine) -> Iterator[list[torch.Tensor]]:
    """What the model gives, step by step."""
    seen: list[torch.Tensor] = []
    read = engine._read

    def reading(parts: Any) -> torch.Tensor:
        logits = read(parts)
        seen.append(logits.clone())
        return logits

    engine._read = reading  # type: ignore[method-assign]
    yield seen


@pytest.mark.parametrize("family", ["gpt2, compiled", "llama, compiled"])
@pytest.mark.parametrize("form", ["fp32", "bf16", "int8", "int4"])
def test_compiled_scores_do_not_depend_on_others(family: str, form: str) -> None:
    """And base rows are to the bit those of an engine without adapters."""
    module, shape = FAMILIES[family]
    model = model_of(module, **shape)
    if form == "bf16":
        model.compute_dtype = torch.bfloat16
    elif form != "fp32":
        model = quantize_model(model, choose(model, {"int8": 8, "int4": 4}[form]))
    if not compiled_decoder.fits(model):
        pytest.skip("no compiler, or a processor without AVX-512 BF16 and VNNI")
    adapters = adapters_of(model)
    texts = prompts(8)
    config = SamplingConfig(temperature=0.0, max_tokens=1)

    def first_scores(engine: Engine, asked: list[tuple[str | None, list[int]]]) -> torch.Tensor:
        with scores(engine) as seen:
            for name, prompt in asked:
                engine.submit(prompt, config, adapter=name)
            run(engine)
        return torch.cat(seen)

    asked = [(WHO[i % 4], prompt) for i, prompt in enumerate(texts)]
    together = first_scores(Engine(model, adapters=adapters), asked)
    for row, (name, prompt) in enumerate(asked):
        alone = Engine(model, adapters=adapters if name else None)
        assert torch.equal(first_scores(alone, [(name, prompt)])[0], together[row])
        if name is not None:  # and close to those of torch
            with torch.inference_mode():
                view = with_adapter(model, adapters[name])
                wanted = view(torch.tensor([prompt]))[0, -1].float()
            off = (together[row] - wanted).abs().max() / wanted.abs().max()
            assert off < {"fp32": 1e-4, "bf16": 0.06, "int8": 0.1, "int4": 0.1}[form]


# --- what does not fit ---------------------------------------------------------------------------


def test_misfits_are_named() -> None:
    model = model_of(gpt2, n_heads=4)
    good = pairs_of(model, 1, 4)
    q = good["blocks.0.q"]
    for bad, problem in (
        ({}, "changes nothing"),
        ({"blocks.9.q": q}, r"no map 'blocks\.9\.q'"),
        ({"blocks.0.q": Pair(q.a[:, :9], q.b, 1.0)}, "do not fit"),
        ({"blocks.0.q": Pair(q.a, q.b[:, :2], 1.0)}, "do not fit"),
        ({"blocks.0.q": Pair(q.a, q.b * torch.nan, 1.0)}, "NaN"),
        ({"blocks.0.q": Pair(q.a, q.b, float("inf"))}, "NaN"),
    ):
        with pytest.raises(ModelError, match=f"'poet'.*{problem}"):
            Engine(model, adapters={"poet": bad})
    engine = Engine(model, adapters={"poet": good})
    with pytest.raises(UsageError, match="no adapter 'poe'"):
        engine.submit([1], GREEDY, adapter="poe")
    assert engine.adapters == ("poet",) and not len(engine)
    net = lstm.Model(lstm.Config(vocab_size=20, d_model=8, hidden_size=8, n_layers=1)).eval()
    with pytest.raises(ModelError, match="no map"):
        Engine(net, adapters={"poet": good})


def test_weights_are_not_copied() -> None:
    model = model_of(llama, **GROUPED)
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    twin = with_adapter(model, pairs_of(model, 1, 4))
    assert {p.data_ptr() for p in twin.parameters()} == set(before.values())
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
