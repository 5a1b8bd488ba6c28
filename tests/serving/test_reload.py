"""A run that is still training: its new checkpoints answer, and nobody's answer changes midway."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone import api
from inkstone.checkpoint import save_model
from inkstone.errors import CheckpointError
from inkstone.files import atomic_folder
from inkstone.inference.engine import Engine
from inkstone.inference.stream import Chunk
from inkstone.models import gpt2
from inkstone.pipeline.locate import step_of
from inkstone.recipe import Recipe
from inkstone.serving.config import ServeConfig
from inkstone.serving.hosted import Hosted
from inkstone.serving.reload import Reloader
from inkstone.serving.server import Server
from inkstone.serving.source import Source
from inkstone.training.state import checkpoint_path
from tests.serving.conftest import Start, small_model
from tests.serving.test_adapters import save_changes
from tests.serving.test_guard import ask
from tests.serving.test_streams import begun, until

ASKED: dict[str, Any] = {"prompt": "It was", "max_tokens": 24, "temperature": 0}


def save_step(run: Path, step: int, *, model: Any = None) -> Path:
    """A checkpoint that says something else than those of other steps."""
    small = small_model()
    if model is None:
        model = small.model
        torch.manual_seed(step)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim == 2:
                    p.normal_(0, 0.12)
    with atomic_folder(checkpoint_path(run, step)) as folder:
        save_model(folder, model, small.tokenizer)
    return checkpoint_path(run, step)


def service_of(server: Server) -> Any:
    app: Any = server.config.loaded_app
    return app.app.state.service


def reloader_of(server: Server) -> Reloader:
    found: Reloader = service_of(server).reloader
    return found


def hosted_of(server: Server, name: str = "mine") -> Hosted:
    found: Hosted = service_of(server).hosted[name]
    return found


def said(server: Server, model: str = "mine") -> str:
    status, _, content = ask(server, {**ASKED, "model": model})
    assert status == 200, content
    text: str = json.loads(content)["choices"][0]["text"]
    return text


def expected(folder: Path) -> str:
    model = api.load(folder, device="cpu")
    text: str = model.generate("It was", max_tokens=24, temperature=0.0).text
    return text


def metrics(server: Server) -> str:
    return ask(server, None, path="/metrics", method="GET")[2].decode()


def listed(server: Server) -> dict[str, Any]:
    content = ask(server, None, path="/v1/models", method="GET")[2]
    return {one["id"]: one for one in json.loads(content)["data"]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_step(tmp_path / "run", 1)
    return tmp_path / "run"


def test_a_new_checkpoint_answers_and_counts_go_on(start: Start, run: Path) -> None:
    server = start(Source("mine", str(run), device="cpu"))
    assert listed(server)["mine"]["step"] == 1
    first = said(server)
    assert first == expected(checkpoint_path(run, 1))
    reloader_of(server).look()
    old = hosted_of(server)
    assert listed(server)["mine"]["step"] == 1  # nothing is new
    save_step(run, 2)
    reloader_of(server).look()
    assert until(lambda: hosted_of(server) is not old)
    assert said(server) == expected(checkpoint_path(run, 2)) != first
    about = listed(server)["mine"]
    assert about["step"] == 2 and about["loaded_at"] >= old.created
    assert old.worker is not None
    assert until(lambda: not old.worker._thread.is_alive() and not old.desk._thread.is_alive())
    told = metrics(server)
    assert 'inkstone_reloads_total{model="mine",result="served"} 1.0' in told
    assert 'inkstone_answered{model="mine"} 2.0' in told  # one by each


class Stepping(Engine):
    """An engine that makes the steps that the test lets it make."""

    steps = threading.Semaphore(0)

    def step(self) -> list[Chunk]:
        assert self.steps.acquire(timeout=30)
        return super().step()


def test_an_answer_ends_with_the_weights_it_began_with(
    start: Start, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inkstone.serving import hosted

    monkeypatch.setattr(hosted, "Engine", Stepping)
    Stepping.steps.release(8)
    server = start(Source("mine", str(run), device="cpu"))
    old = hosted_of(server)
    assert old.worker is not None
    connection = begun(server, max_tokens=200, temperature=0)
    assert len(old.worker) == 1
    save_step(run, 2)
    reloader_of(server).look()
    assert until(lambda: listed(server)["mine"]["step"] == 2)
    assert hosted_of(server) is not old and old.worker._thread.is_alive()
    later: list[str] = []
    asking = threading.Thread(target=lambda: later.append(said(server)))
    asking.start()
    new = hosted_of(server).worker
    assert new is not None and until(lambda: len(new) == 1)
    assert len(old.worker) == 1  # both are being answered
    save_step(run, 3)
    reloader_of(server).look()  # a third one has to wait
    assert len(reloader_of(server)._leaving) == 1
    Stepping.steps.release(10_000)
    asking.join(30)
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    connection.close()
    events = [json.loads(line[6:]) for line in b"".join(parts).decode().split("\n")
              if line.startswith("data: {")]  # fmt: skip
    text = "".join(event["choices"][0]["text"] for event in events)
    model = api.load(checkpoint_path(run, 1), device="cpu")
    whole = model.generate("It was", max_tokens=200, temperature=0.0).text
    assert len(text) > 50 and whole.endswith(text)
    assert later == [expected(checkpoint_path(run, 2))]
    assert until(lambda: not old.worker._thread.is_alive() and not reloader_of(server)._leaving)
    reloader_of(server).look()
    assert until(lambda: listed(server)["mine"]["step"] == 3)


def test_what_cannot_be_served_is_passed_over_once(
    start: Start, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = start(Source("mine", str(run), device="cpu"))
    first, old = said(server), hosted_of(server)
    failed = 'inkstone_reloads_total{model="mine",result="failed"}'

    def passed_over(times: int, reason: str) -> None:
        with caplog.at_level(logging.WARNING, "inkstone.serving"):
            caplog.clear()
            for _ in range(3):
                reloader_of(server).look()
        assert len(caplog.records) == 1 and reason in caplog.text
        assert f"{failed} {times}.0" in metrics(server)
        assert hosted_of(server) is old and said(server) == first

    weights = save_step(run, 2) / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-9] ^= 1  # one bit, and no change of size
    weights.write_bytes(raw)
    passed_over(1, "sha256")
    (save_step(run, 3) / "model.safetensors").unlink()
    passed_over(2, "model.safetensors")
    shape = gpt2.Config(**{**small_model().model.config.model_dump(), "n_layers": 3})
    save_step(run, 4, model=gpt2.Model(shape))
    passed_over(3, "another shape")
    shutil.rmtree(run / "checkpoints")
    reloader_of(server).look()  # there is nothing to open, and nothing to tell
    assert said(server) == first
    save_step(run, 5)
    reloader_of(server).look()
    assert until(lambda: hosted_of(server) is not old)
    assert said(server) == expected(checkpoint_path(run, 5))


def test_a_thread_looks(start: Start, run: Path) -> None:
    server = start(Source("mine", str(run), device="cpu"), reload_s=0.01)
    thread = reloader_of(server)._thread
    assert thread.is_alive()
    save_step(run, 2)
    assert until(lambda: hosted_of(server).step == 2)
    assert said(server) == expected(checkpoint_path(run, 2))
    server.should_exit = True
    assert until(lambda: not thread.is_alive())


def test_adapters_go_over_to_the_new_weights(start: Start, run: Path, tmp_path: Path) -> None:
    save_changes(tmp_path / "poet", 1)
    server = start(Source("mine", str(run), {"poet": str(tmp_path / "poet")}, "cpu"))
    before = said(server, "poet")
    old = hosted_of(server, "poet")
    save_step(run, 2)
    reloader_of(server).look()
    assert until(lambda: hosted_of(server, "poet") is not old)
    merged = api.load(run, device="cpu").adapted(tmp_path / "poet")
    found = merged.generate("It was", max_tokens=24, temperature=0.0).text
    assert said(server, "poet") == found != before
    again = hosted_of(server, "poet")
    save_changes(tmp_path / "other", 5)
    shutil.rmtree(tmp_path / "poet")
    (tmp_path / "other").rename(tmp_path / "poet")  # the adapter alone is new
    assert until(lambda: not reloader_of(server)._leaving)
    reloader_of(server).look()
    assert until(lambda: hosted_of(server, "poet") is not again)
    assert said(server, "poet") != found and listed(server)["mine"]["step"] == 2


def test_a_run_without_a_checkpoint_says_when_one_comes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    recipe = {"training": {"eval_every": 250, "save_every": 100, "max_steps": 4000}}
    (run / "recipe.toml").write_text(Recipe.model_validate(recipe).to_toml())
    with pytest.raises(CheckpointError, match="at step 0, and the first one comes at step 100"):
        Source("mine", str(run)).open(ServeConfig())
    row = {"kind": "step", "step": 12, "max_steps": 4000, "loss": 3.0}
    (run / "log.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(CheckpointError, match="no checkpoint yet: it is at step 12"):
        api.load(run)
    recipe = {"training": {"save_minutes": 5}}
    (run / "recipe.toml").write_text(Recipe.model_validate(recipe).to_toml())
    with pytest.raises(CheckpointError, match="comes after 5 minutes of training"):
        api.load(run)


def test_steps_are_told_by_the_place(tmp_path: Path) -> None:
    assert step_of(tmp_path / "checkpoints" / "step-00000120") == 120
    assert step_of(tmp_path / "checkpoints" / "step-00000120" / "adapter") == 120
    assert step_of(tmp_path / "model") is None and step_of(tmp_path / "gpt2") is None
    (tmp_path / "best.json").write_text('{"step": 40}')
    assert step_of(tmp_path / "model") == step_of(tmp_path / "adapter") == 40
