"""`inkstone look`: what is shown is what is trained on, and nothing in it drives a terminal."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from inkstone.cli import look as command
from inkstone.inspection.look import look
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks._codec import Codec
from inkstone.tasks.instructions import Config, Task
from inkstone.tokenizers import train as training
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer

TALKS = [
    {"messages": [{"role": "user", "content": "Hi <|end|> <b>"},
                  {"role": "assistant", "content": "Yo [bold]é\x1b[31m 你"},
                  {"role": "user", "content": "Again?"}, {"role": "assistant", "content": "No."}]},
    {"prompt": "One?", "completion": "Two."},
    {"messages": [{"role": "user", "content": "Nobody answers"}]},
]  # fmt: skip


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(map(json.dumps, TALKS)))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with what `look` reads of a run."""
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    training.train(["x"], TokenizerConfig(kind="byte")).save(folder)
    (folder / "config.json").write_text("{}")
    (folder / "inkstone.json").write_text(json.dumps({"max_length": 40}))
    return folder.parent


def test_ids_and_mask_are_those_of_training(tool: Any, table: Path, model: Path) -> None:
    told = tool("look", table, "--model", model, "--json")
    assert told.code == 0 and told.err == ""
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [r["place"].rpartition(", ")[2] for r in rows] == [
        "line 1",
        "line 1",
        "line 2",
        "line 3",
    ]
    assert [r.get("name") for r in rows] == ["part 1", "part 2", None, None]
    task, tokenizer = Task(Config()), Tokenizer.load(model / "model")
    examples = [shown for shown in _read(table, task)]
    trained = [r for own in task.encode(examples, Codec(tokenizer, 40)) for r in own]
    assert len(trained) == 3  # nothing is learned of the last
    for shown, row in zip(rows, trained, strict=False):
        assert shown["ids"][:-1] == row["ids"]
        assert [i for i, wanted in zip(shown["ids"], shown["learned"], strict=True) if wanted] == [
            i for i in row["targets"] if i != IGNORE_INDEX
        ]
    assert sum(rows[-1]["learned"]) == 0


def _read(table: Path, task: Task) -> list[Any]:
    from inkstone.text.config import TextConfig
    from inkstone.text.table import read_table

    return [task.read(record) for record in read_table(table, task.wanted, config=TextConfig())]


def test_without_colours_brackets_say_it(tool: Any, table: Path, model: Path) -> None:
    out = tool("look", table, "--model", model, "--seq-len", 200).out
    assert "<|user|>Hi <|end|> <b><|end|><|assistant|>⟦Yo [bold]é[31m 你" in out
    assert "<|user|>One?<|end|><|assistant|>⟦Two.<|end|>⟧" in out
    assert "<|user|>Nobody answers<|end|>\n" in out and "\x1b" not in out
    assert "3 rows, " in out


def test_on_a_terminal_colours_say_it(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = training.train(["x"], TokenizerConfig(kind="byte"))
    (row,) = list(look(table, Task(Config()), tokenizer, most=200, limit=1))
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="standard", soft_wrap=True)
    console.print(command._marked(row, plain=False))
    text = out.getvalue()
    assert "\x1b[32mYo [bold]é[31m 你\x1b[0m" in text  # green; no red
    assert "\x1b[1;32m<|end|>\x1b[0m" in text and "\x1b[1;36m<|user|>\x1b[0m" in text
    assert "⟦" not in text


def test_a_page_is_written_once_and_holds_no_markup_of_users(
    tool: Any, table: Path, model: Path, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    told = tool("look", table, "--model", model, "--seq-len", 200, "--html", page)
    assert told.code == 0 and "3 rows" in told.out
    html = page.read_text()
    assert "<b>" not in html and "&lt;" in html and "http" not in html.replace("http-equiv", "")
    tokens = re.findall(r'<span class="( c|l| *|l c)" title="([\d ]+)">', html)
    rows = [json.loads(x) for x in tool("look", table, "--model", model, "--seq-len", 200,
                                        "--json").out.splitlines()]  # fmt: skip
    assert [int(i) for _, ids in tokens for i in ids.split()] == [i for r in rows for i in r["ids"]]
    again = tool("look", table, "--html", page)
    assert again.code == 2 and "is there already" in again.err and page.read_text() == html


def test_of_a_pair_both_answers_are_shown(tool: Any, model: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "One?", "chosen": "Two.", "rejected": "Six."}))
    told = tool("look", pairs, "--model", model, "--task", "preferences")
    assert told.code == 0 and "line 1, chosen: 12 tokens, 5 learned" in told.out
    assert "<|assistant|>⟦Two.<|end|>⟧" in told.out and "⟦Six.<|end|>⟧" in told.out


def test_without_a_model_a_tokenizer_is_made(tool: Any, table: Path) -> None:
    told = tool("look", table, "--limit", 1)
    assert told.code == 0 and "tokenizer is trained on this data" in told.err
    assert "1 rows" in told.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "chatt"), "unknown --task 'chatt'"),
        (("--model", "nowhere"), "nowhere does not exist"),
    ],
)
def test_mistakes(tool: Any, table: Path, arguments: tuple[str, ...], message: str) -> None:
    told = tool("look", table, *arguments)
    assert told.code != 0 and message in told.err and "Traceback" not in told.err
    other = table.with_name("other.jsonl")
    other.write_text('{"text": "a"}')
    assert "no conversation" in tool("look", other).err
    other.write_text("")
    assert "holds no record" in tool("look", other).err
