"""`inkstone label`: results on stdout, mistakes without a traceback, a file that only grows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inkstone.cli.main import main
from inkstone.labelling.server import Server

RULES = """
[[rule]]
name = "game"
label = "sport"
keywords = ["cup", "goal"]

[[rule]]
label = "law"
regex = "law|court"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"the {w} of day {n} was \x1b[31m long"} for n in range(20)
            for w in ("cup", "law", "match", "court")]  # fmt: skip
    (tmp_path / "news.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path


def test_rules_self_training_and_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["label", "news.jsonl", "--rules", "rules.toml"]) == 0
    out, err = capsys.readouterr()
    assert "game" in out and "60 of 80 texts covered; 60 labels written" in out and err == ""
    before = (here / "labels.jsonl").read_bytes()
    arguments = ["label", "news.jsonl", "--self-train", "--share", "1", "--export", "train.jsonl"]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["self_training"]["written"] > 0 and found["labels"]["law"]["rule"] == 40
    assert (here / "labels.jsonl").read_bytes().startswith(before)
    rows = [json.loads(line) for line in (here / "train.jsonl").read_text().splitlines()]
    assert len(rows) == found["exported"] and {row["by"] for row in rows} == {"rule", "model"}


def test_suggestions_come_back_with_labels(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = ["--labels", "sport,law"]
    assert main(["label", "news.jsonl", *labels, "--suggest", "12"]) == 0
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 12 and "0 " in err and not (here / "labels.jsonl").exists()
    for row in rows:
        row["label"] = "law" if "law" in row["text"] or "court" in row["text"] else "sport"
    (here / "filled.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["label", "news.jsonl", *labels, "--add", "filled.jsonl", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 12
    assert main(["label", "news.jsonl", "--suggest", "3", "--json"]) == 0
    more = json.loads(capsys.readouterr().out)["suggestions"]
    assert not {row["text"] for row in rows} & {row["text"] for row in more}
    assert all(0.5 <= row["confidence"] <= 1 for row in more)


def test_serve(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def until_ctrl_c(self: Server, poll_interval: float) -> None:
        id = self.desk.state()["example"]["id"]
        self.desk.act("label", {"id": id, "label": "law"})
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", until_ctrl_c)
    arguments = ["label", "news.jsonl", "--labels", "law,sport", "--serve", "--json"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["labels"]["law"]["person"] == 1 and "http://127.0.0.1:" in err
    (here / "other.jsonl").write_text('{"text": "b b"}\n{"text": "b b b"}')
    assert main(["label", "other.jsonl"]) == 2
    assert "of other texts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["news.jsonl"], "0 labels"),
        (["news.jsonl", "--labels", "one"], "1 labels"),
        (["nowhere.jsonl", "--labels", "a,b"], "nowhere.jsonl"),
        (["news.jsonl", "--labels", "a,b", "--out", "news.jsonl"], "part of the data"),
        (["news.jsonl", "--labels", "a,b", "--out", "rules.toml"], "line 1"),
        (["news.jsonl", "--labels", "a,b", "--rules", "rules.toml"], "votes for"),
        (["news.jsonl", "--labels", "a,b", "--self-train"], "two labels"),
        (["news.jsonl", "--labels", "a,b", "--field", "body"], "no field 'body'"),
        (["news.jsonl", "--labels", "a,b", "--export", "rules.toml"], "is there already"),
    ],
)
def test_mistakes(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["label", *arguments]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and message in err and "→" in err and "Traceback" not in err
    assert (here / "rules.toml").read_text() == RULES and not (here / "labels.jsonl").exists()
