"""Small models behind a real server on this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from inkstone import api
from inkstone.models import gpt2
from inkstone.serving.config import ServeConfig
from inkstone.serving.hosted import Hosted
from inkstone.serving.server import Server
from inkstone.serving.source import Source
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train

CONTEXT = 256
Start = Callable[..., Server]


def small_model(**info: Any) -> api.LanguageModel:
    """A causal model of bytes that was never trained, but says different things."""
    torch.manual_seed(0)
    tokenizer = train(["any text"], TokenizerConfig(kind="byte"))
    shape = {"vocab_size": tokenizer.vocab_size, "max_seq_len": CONTEXT, "d_model": 32}
    model = gpt2.Model(gpt2.Config(**shape, n_layers=2, n_heads=4))
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(6.0)
    return api.LanguageModel(Path("small"), model.eval(), tokenizer, {"inkstone": "x", **info})


@contextlib.contextmanager
def running(*models: tuple[str, api.LanguageModel] | Source, **settings: Any) -> Iterator[Server]:
    """A server in a thread of its own, of models or of folders."""
    config = ServeConfig(port=0, grace_s=2.0, **settings)
    up = threading.Event()
    hosted: list[Hosted] = []
    for one in models:
        hosted += one.open(config) if isinstance(one, Source) else [Hosted(*one, config)]
    server = Server(hosted, config, told=lambda _: up.set())
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert up.wait(30), "the server did not start"
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "the server did not stop"


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Starts servers, and stops them at the end of the module."""
    with contextlib.ExitStack() as stack:
        yield lambda *models, **settings: stack.enter_context(running(*models, **settings))


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start(("small", small_model()), keys=("a-key-of-the-test",))
