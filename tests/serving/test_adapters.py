"""Adapters by name: each answers as a model merged for it would, from the weights of one base."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone import api
from inkstone.checkpoint import read_tensors, save_model, write_tensors
from inkstone.checkpoint.adapters import ABOUT, WEIGHTS, base_fingerprint, save_adapter
from inkstone.cli.serve import _sources
from inkstone.errors import CheckpointError, UsageError
from inkstone.nn import lora
from inkstone.serving.config import ServeConfig
from inkstone.serving.server import Server
from inkstone.serving.source import Source
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train
from tests.serving.conftest import Start, small_model
from tests.serving.test_guard import ask

openai = pytest.importorskip("openai", reason="OpenAI's client is not installed")
ASKED: dict[str, Any] = {"prompt": "It was", "max_tokens": 24, "temperature": 0}


def save_base(folder: Path) -> None:
    folder.mkdir(parents=True)
    small = small_model()
    save_model(folder, small.model, small.tokenizer)


def save_changes(folder: Path, seed: int, *, rank: int = 4) -> None:
    """An adapter of `small_model` that changes what it says."""
    folder.mkdir(parents=True)
    model = small_model().model
    lora.attach(model, rank, 8.0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for change in lora.changes(model).values():
            change.b.normal_(0, 0.5)
    save_adapter(folder, model, base="base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and an adapter in a folder and one in a run."""
    folder = tmp_path_factory.mktemp("adapters")
    save_base(folder / "base")
    save_changes(folder / "poet", 1)
    save_changes(folder / "law" / "adapter", 2, rank=9)
    save_base(folder / "law" / "model")
    return folder


@pytest.fixture(scope="module")
def source(folder: Path) -> Source:
    adapters = {"poet": str(folder / "poet"), "law": str(folder / "law")}
    return Source("base", str(folder / "base"), adapters, "cpu")


@pytest.fixture(scope="module")
def served(start: Start, source: Source) -> Server:
    return start(source)


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, api.LanguageModel]:
    """Each as a model of its own."""
    base = api.load(folder / "base", device="cpu")
    return {"base": base, **{name: base.adapted(folder / name) for name in ("poet", "law")}}


@pytest.fixture(scope="module")
def client(served: Server) -> Any:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def test_they_are_listed_with_their_parent(client: Any) -> None:
    listed = {one.id: one for one in client.models.list()}
    assert list(listed) == ["base", "poet", "law"]
    assert [one.parent for one in listed.values()] == [None, "base", "base"]
    assert len({one.parameters for one in listed.values()}) == 1
    assert listed["poet"].can == listed["base"].can


def test_each_answers_as_its_merged_model_whoever_else_asks(
    client: Any, alone: dict[str, api.LanguageModel]
) -> None:
    prompts = ["It was", "It was the", "So", "A long beginning that fills some pages of the cache"]
    asked = [(name, prompt) for prompt in prompts for name in alone] * 2

    def one(pair: tuple[str, str]) -> tuple[str, str]:
        model, prompt = pair
        told = client.completions.create(**{**ASKED, "model": model, "prompt": prompt})
        return told.model, told.choices[0].text

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(one, asked))
    expected = {
        (name, prompt): alone[name].generate(prompt, temperature=0.0, max_tokens=24).text
        for name, prompt in set(asked)
    }
    assert found == [(name, expected[name, prompt]) for name, prompt in asked]
    assert len({expected[name, "It was"] for name in alone}) == 3


def test_chat_responses_and_scores_are_the_adapters(
    client: Any, alone: dict[str, api.LanguageModel]
) -> None:
    talk: Any = [{"role": "user", "content": "Who are you?"}]
    said = set()
    for name, model in alone.items():
        expected = model.chat(talk, temperature=0.0, max_tokens=12).text
        found = client.chat.completions.create(
            model=name, messages=talk, temperature=0, max_tokens=12
        )
        assert found.choices[0].message.content == expected
        newer = client.responses.create(model=name, input=talk, temperature=0, max_output_tokens=12)
        assert newer.output_text == expected and newer.model == name
        said.add(expected)
        scored = client.completions.create(
            model=name, prompt="It was", echo=True, max_tokens=0, logprobs=0
        )
        ids = torch.tensor([model.generator.encode("It was")])
        with torch.no_grad():
            wanted = model.model(ids)[0].log_softmax(-1)[torch.arange(len(ids[0]) - 1), ids[0, 1:]]
        told = scored.choices[0].logprobs.token_logprobs
        assert told == pytest.approx(wanted.tolist(), abs=1e-3)
    assert len(said) == 3


def test_each_is_counted_for_itself(start: Start, source: Source) -> None:
    server = start(source)
    for name, times in (("base", 1), ("poet", 2)):
        for _ in range(times):
            assert ask(server, body={**ASKED, "model": name})[0] == 200
    metrics = ask(server, None, path="/metrics", method="GET")[2].decode()
    for name, times in (("base", 1), ("poet", 2), ("law", 0)):
        assert f'inkstone_answered{{model="{name}"}} {times}.0' in metrics
        assert f'inkstone_answer_tokens{{model="{name}"}} {24.0 * times}' in metrics


# --- what does not fit ---------------------------------------------------------------------------


def refused(folder: Path, adapter: Path, match: str) -> None:
    source = Source("base", str(folder / "base"), {"poet": str(adapter)}, "cpu")
    with pytest.raises(CheckpointError, match=match):
        source.open(ServeConfig())


def test_misfits_are_named_at_start_up(folder: Path, tmp_path: Path) -> None:
    refused(folder, tmp_path / "none", "does not exist")
    refused(folder, folder / "base", "holds no adapter")
    save_changes(tmp_path / "a", 1)
    good = read_tensors(tmp_path / "a" / WEIGHTS)
    first = next(iter(good))

    def with_first(value: torch.Tensor) -> Path:
        write_tensors(tmp_path / "a" / WEIGHTS, {**good, first: value})
        return tmp_path / "a"

    refused(folder, with_first(good[first] * torch.nan), "NaN or infinity")
    refused(folder, with_first(torch.zeros(4, 7)), "do not fit")
    write_tensors(
        tmp_path / "a" / WEIGHTS, {k.replace(".h.1.", ".h.9."): v for k, v in good.items()}
    )
    refused(folder, tmp_path / "a", "no pair of matrices for a map of this model")


def test_another_base_of_the_same_shape_is_refused(folder: Path, tmp_path: Path) -> None:
    """Nothing but its vectors tells; and they stay what they are where matrices are rounded."""
    model = api.load(folder / "base", device="cpu").model
    before = base_fingerprint(model)
    shutil.copytree(folder / "poet", tmp_path / "a")
    about = {"base": {"name": "base", "fingerprint": before}}
    (tmp_path / "a" / ABOUT).write_text(json.dumps(about))
    Source("base", str(folder / "base"), {"poet": str(tmp_path / "a")}).open(ServeConfig())
    assert base_fingerprint(model.to(torch.bfloat16)) == before
    about["base"]["fingerprint"] = "0" * 64
    (tmp_path / "a" / ABOUT).write_text(json.dumps(about))
    refused(folder, tmp_path / "a", "trained on another model: 'base'")


def test_a_template_of_its_own_is_taken_and_another_tokenizer_is_not(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "poet", tmp_path / "a")
    own = small_model().tokenizer
    assert own is not None
    own.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    own.save(tmp_path / "a")
    (tmp_path / "a" / ABOUT).write_text(json.dumps({"dialogue_trained": True}))
    source = Source("base", str(folder / "base"), {"poet": str(tmp_path / "a")}, "cpu")
    base, poet = source.open(ServeConfig())
    assert base.talk is not None and poet.talk is not None
    assert not base.talk.dialogue and poet.talk.dialogue
    assert poet.model.tokenizer is not None
    assert poet.model.tokenizer.chat_template == own.chat_template
    train(["other words"] * 9, TokenizerConfig(kind="word", vocab_size=40)).save(tmp_path / "a")
    refused(folder, tmp_path / "a", "'poet': the tokenizer in .* is not that of")


def test_the_flag_says_which_model() -> None:
    (one,) = _sources(["runs/base"], ["poet=a/poet", "a/law", "base:x=a/x"], "cpu")
    assert one.adapters == {"poet": "a/poet", "law": "a/law", "x": "a/x"}
    first, second = _sources(["runs/one", "two=runs/2"], ["two:poet=a/poet"], "cpu")
    assert not first.adapters and second.adapters == {"poet": "a/poet"}
    with pytest.raises(UsageError, match="does not say of which model"):
        _sources(["runs/one", "runs/two"], ["poet=a/poet"], "cpu")
    with pytest.raises(UsageError, match="two models are called 'one'"):
        _sources(["runs/one"], ["one=a/one"], "cpu")
    with pytest.raises(UsageError, match="no name"):
        _sources(["runs/one"], ["=a"], "cpu")
