"""`compress`: a small folder that does what the large one did, and what is told about both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import inkstone as ink
from inkstone import api
from inkstone.errors import CheckpointError, ModelError, UsageError


@pytest.mark.parametrize("to", ["int8", "int4", "fp8", "bf16"])
def test_a_language_model(poet: Path, to: str, tmp_path: Path) -> None:
    texts = poet / "texts.txt"
    done = api.compress(poet / "run", to, tmp_path / "small", data=texts, evaluate=texts)
    share = {"int8": 0.45, "int4": 0.35, "fp8": 0.45, "bf16": 0.51}[
        to
    ]  # norms and tables weigh much here
    assert done.after.disk_bytes < share * done.before.disk_bytes
    assert done.before.speed and done.after.speed and done.after.speed_unit == "tokens/s"
    before, after = done.before.scores["perplexity"], done.after.scores["perplexity"]
    assert after == pytest.approx(before, rel={"int4": 0.1, "fp8": 0.05}.get(to, 0.01))
    small, large = ink.load(tmp_path / "small"), ink.load(poet / "run")
    assert small.perplexity(texts).perplexity == pytest.approx(after)
    assert small.n_parameters == large.n_parameters
    assert small.info["compressed"] == {
        "to": to, "from": "model", "calibrated": to in ("int8", "int4")
    }  # fmt: skip
    assert small.generate("the old", max_tokens=12, temperature=0).text
    if to in ("int8", "bf16"):
        answers = [m.generate("the old", max_tokens=4, temperature=0).ids for m in (small, large)]
        assert answers[0] == answers[1]


def test_a_task(critic: Path, tmp_path: Path) -> None:
    rows = critic / "rows.jsonl"
    done = api.compress(critic / "run", "int8", tmp_path / "small", data=rows, evaluate=rows)
    assert done.after.scores["accuracy"] >= done.before.scores["accuracy"] - 1
    assert done.after.speed_unit == "examples/s" and done.after.speed
    assert any("classifier" in name for name in done.kept)
    label = ink.load(tmp_path / "small").classify("the red cat sat on the river").label
    assert label == ink.load(critic / "run").classify("the red cat sat on the river").label


def test_without_data_there_is_no_score(poet: Path, tmp_path: Path) -> None:
    done = api.compress(poet / "run", "int4", tmp_path / "small", keep=["embed", "blocks.0"])
    assert done.after.scores == {} and not done.calibrated
    assert not any(n.startswith(("embed", "blocks.0")) for n in done.bits) and done.bits
    json.dumps(done.to_dict())


def test_refusals(poet: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8, int4, fp8, bf16"):
        api.compress(poet / "run", "int3", tmp_path / "small")
    with pytest.raises(UsageError, match="nothing is called"):
        api.compress(poet / "run", "int8", tmp_path / "small", keep=["nose"])
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="is there already"):
        api.compress(poet / "run", "int8", tmp_path / "there")
    assert not (tmp_path / "small").exists()


def test_the_command(poet: Path, tmp_path: Path, capsys: Any) -> None:
    from inkstone.cli.main import main

    arguments = ["compress", str(poet / "run"), "--to", "int4", "--out", str(tmp_path / "small")]
    assert main([*arguments, "--eval", str(poet / "texts.txt")]) == 0
    out = capsys.readouterr().out
    assert "on disk" in out and "perplexity" in out and "--data" in out
    assert main(["compress", str(poet / "run"), "--to", "int8", "--out", str(tmp_path / "b"),
                 "--json", "--quiet"]) == 0  # fmt: skip
    told = json.loads(capsys.readouterr().out)
    assert told["to"] == "int8" and told["after"]["disk_bytes"] < told["before"]["disk_bytes"]
    assert main([*arguments]) == 1
    assert main(["compress", str(tmp_path / "nowhere"), "--to", "int8", "--out", "x"]) == 1


def test_whole_numbers_are_not_exported(poet: Path, tmp_path: Path) -> None:
    api.compress(poet / "run", "int8", tmp_path / "small")
    with pytest.raises(ModelError, match="whole numbers"):
        ink.load(tmp_path / "small").export(tmp_path / "small.gguf", "gguf")
    assert not (tmp_path / "small.gguf").exists()
