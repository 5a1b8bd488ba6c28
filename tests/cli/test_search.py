"""`inkstone search`: passages on stdout, the rest on stderr, mistakes without a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inkstone.cli.main import main


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.txt").write_text("A letter was written.\n\n\x1b[31mThe river froze in 1848.\n")
    (folder / "b.md").write_text("Nothing of the kind.")
    return folder


def test_words_alone(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(docs), "river 1848", "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("1. a.txt, line 1") and "The river froze" in out and "\x1b" not in out
    assert "2 passages of 2 files, 2 of them new" in err
    assert main(["search", str(docs), "river 1848", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_json(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(docs.parent / "index")
    assert main(["search", str(docs), "RIVER", "--json", "--index", index, "-q"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["source"] == "a.txt" and row["start"] == 0 and row["score"] > 0
    assert [row["text"][a:b] for a, b in row["marks"]] == ["river"]
    assert main(["search", str(docs), "zebra", "--json", "-q", "--index", index]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["docs"], "1 arguments"),
        (["docs", "a", "b", "c"], "quotes"),
        (["docs", "x", "--vectors-only"], "needs a model"),
        (["m", "docs", "x", "--vectors-only", "--bm25-only"], "exclude"),
        (["./nowhere", "docs", "x"], "does not exist"),
        (["nowhere", "x"], "does not exist"),
    ],
)
def test_mistakes(
    docs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(docs.parent)
    assert main(["search", *arguments]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-2:] and message in err and "Traceback" not in err
