"""`inkstone serve`: says where it listens, answers, and ends with its answers told."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from inkstone.checkpoint import save_model
from inkstone.cli.main import main

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.serving.conftest import small_model

    out = tmp_path_factory.mktemp("served") / "poet"
    out.mkdir()
    model = small_model()
    save_model(out, model.model, model.tokenizer, info=model.info)
    return out


def test_it_serves_until_it_is_told_to_stop(folder: Path) -> None:
    command = [sys.executable, "-m", "inkstone", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            code, rest = _asked_and_ended(process)
        finally:
            process.kill()  # where anything above failed, nobody waits for it
    assert code in (0, 143) and "Traceback" not in rest
    assert "/v1/completions 200" in rest and "secret" not in rest


def _asked_and_ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """A request, then SIGTERM: the exit code, and what was logged meanwhile."""
    assert process.stderr is not None
    lines = [process.stderr.readline() for _ in range(2)]
    assert lines[0].startswith("poet: gpt2, can attend, chat, complete")
    url = lines[1].split()[2].rstrip(";")
    body = json.dumps({"prompt": "It was a secret", "max_tokens": 3}).encode()
    request = urllib.request.Request(
        f"{url}/v1/completions", body, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        assert json.load(response)["model"] == "poet"
    process.send_signal(signal.SIGTERM)
    rest = process.stderr.read()
    return process.wait(30), rest


def test_strangers_need_a_key(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(folder), "--host", "0.0.0.0"]) == 2
    assert "--key-file" in capsys.readouterr().err
    keys = tmp_path / "keys.txt"
    for content in ("", "short\n", "a key with ünlauts\n"):
        keys.write_text(content, encoding="utf-8")
        assert main(["serve", str(folder), "--key-file", str(keys)]) == 2
        assert "secrets.token_urlsafe" in capsys.readouterr().err


def test_what_cannot_be_served_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(tmp_path / "nothing")]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["serve", str(folder), str(folder)]) == 2
    assert "NAME=FOLDER" in capsys.readouterr().err
