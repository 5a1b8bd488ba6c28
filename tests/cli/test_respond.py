"""chat --candidates and --sources on a run that learned dialogue and ratings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    "model.d_model=32", "model.n_layers=1", "model.n_heads=2", "training.max_steps=3",
    "training.examples_per_step=8", "tokenizer.vocab_size=300", "training.precision=fp32",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tool: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    rows: list[dict[str, Any]] = [{"utterances": [f"hello {n}", "hi", "bye"]} for n in range(20)]
    rows += [
        {"context": f"hello {n}", "response": "hi", "attribute": name, "rating": n % 2}
        for n in range(20)
        for name in ("safe", "sensible")
    ]
    (folder / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("Hello is said in the morning.", encoding="utf-8")
    told = tool(
        "train", "lamda-dialogue", "--data", folder / "talk.jsonl", "--run", folder / "run",
        "--cache", folder / "cache", *SMALL,
    )  # fmt: skip
    assert told.code == 0, told.err
    assert f"inkstone chat {folder / 'run'}" in told.out and "rating accuracy" in told.out
    report = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "inkstone chat" in report and "perplexity" in report
    return folder / "run"


def test_the_chosen_answer_comes_with_its_scores(run: Path, tool: Any) -> None:
    arguments = ("chat", run, "--candidates", 3, "--max-tokens", 6, "--seed", 1, "--safety", 0)
    told = tool(*arguments, "--json", stdin="hello 1\n")
    assert told.code == 0 and told.err == "", told
    row = json.loads(told.out)
    assert row["role"] == "assistant" and set(row["scores"]) == {"safe", "sensible"}
    assert row["content"] == row["candidates"][0]["text"] and not row["refused"]
    assert tool(*arguments, "--json", stdin="hello 1\n").out == told.out
    shown = tool(*arguments, "--scores", stdin="hello 1\n").out
    assert shown.count("sensible 0.") == len(row["candidates"])
    refused = tool(*arguments[:-1], 1, stdin="hello 1\n")
    assert refused.out == "I would rather not answer that.\n"


def test_sources_are_looked_up(run: Path, tool: Any) -> None:
    notes = run.parent / "notes"
    arguments = ("chat", run, "--max-tokens", 6, "--seed", 1, "--safety", 0, "--json")
    told = tool(*arguments, "--sources", notes, stdin="hello in the morning\n")
    assert told.code == 0 and json.loads(told.out)["citations"] in ([], [
        {"file": "a.txt", "passage": 1, "text": "Hello is said in the morning.",
         "support": pytest.approx(1.0, abs=0.5)}
    ])  # fmt: skip
    assert tool(*arguments, "--sources", notes / "absent", stdin="hello\n").code == 1


def test_a_model_that_was_taught_no_dialogue_says_so(finished: Any, tool: Any) -> None:
    told = tool("chat", finished[0], "--candidates", 4, stdin="hello\n")
    assert told.code == 2 and "taught dialogue" in told.err
