"""inkstone vectors, and inkstone eval on word vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone.checkpoint import atomic_folder
from inkstone.checkpoint.vectors import save_vectors
from inkstone.cli.vectors import parse
from inkstone.vectors.table import Vectors

WORDS = ("king", "man", "woman", "queen", "apple")
MATRIX = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 0], [0, 1, 1], [-1, -1, 0]], np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with atomic_folder(tmp_path / "run" / "model") as out:
        save_vectors(out, Vectors(WORDS, MATRIX), family="glove", config={})
    return tmp_path / "run"


def test_words_are_asked_for(tool: Any, folder: Path) -> None:
    for words in (
        ["king", "-man", "+woman"],
        ["king - man + woman"],
        ["king", "-", "man", "woman"],
    ):
        told = tool("vectors", folder, *words, "--top", 1, "--json")
        assert told.code == 0 and [n["word"] for n in told.json] == ["queen"], told.err
    told = tool("vectors", folder, "king", "--mul")
    assert told.code == 0 and len(told.out.splitlines()) == 4
    told = tool("vectors", folder)
    assert told.out.startswith("5 words of 3 numbers: king man")
    assert tool("vectors", folder, "--json").json["d_model"] == 3


@pytest.mark.parametrize("format", ["word2vec", "word2vec-binary", "glove"])
def test_files_go_out_and_come_back(tool: Any, folder: Path, tmp_path: Path, format: str) -> None:
    out = tmp_path / ("v.bin" if "binary" in format else "v.txt")
    assert tool("vectors", folder, "--to", out, "--format", format).out.strip() == str(out)
    told = tool("vectors", out, "king", "--json")
    assert told.code == 0 and told.json == tool("vectors", folder, "king", "--json").json
    again = tool("vectors", folder, "--to", out, "--format", format)
    assert again.code == 2 and "exists" in again.err


def test_mistakes(tool: Any, folder: Path, tmp_path: Path) -> None:
    told = tool("vectors", folder, "kingg")
    assert told.code == 2 and "did you mean 'king'" in told.err
    told = tool("vectors", folder, "king", "--to", tmp_path / "x")
    assert told.code == 2 and "leave the words out" in told.err
    assert tool("vectors", tmp_path / "none", "king").code == 1
    (tmp_path / "bad").write_text("1 2\na 1\n")
    told = tool("vectors", tmp_path / "bad", "a")
    assert told.code == 1 and "row 1: 1 numbers instead of 2" in told.err


def test_evaluation(tool: Any, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "analogies").write_text(": royal\nman king woman queen\n")
    told = tool("eval", folder, "--data", tmp_path / "analogies", "--json")
    assert told.code == 0 and told.json["accuracy"] == 1
    assert "100.00% (1 of 1)" in tool("eval", folder, "--data", tmp_path / "analogies").out
    (tmp_path / "pairs").write_text("man\tking\t9\nman\tapple\t1\nking\tapple\t2\n")
    told = tool("eval", folder, "--data", tmp_path / "pairs", "--json")
    assert told.code == 0 and told.json["pairs"] == 3


def test_signs_belong_to_the_next_word() -> None:
    assert parse(["king", "-man", "+woman"]) == (["king", "woman"], ["man"])
    assert parse(["king - man", "+ woman"]) == (["king", "woman"], ["man"])
    assert parse(["e-mail", "-"]) == (["e-mail"], [])
