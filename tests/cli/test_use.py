"""generate, chat, eval and report on a finished run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from inkstone.cli.text import printable

Finished = tuple[Path, Any]


def test_generate_streams_the_prompt_and_its_continuation(finished: Finished, tool: Any) -> None:
    run, _ = finished
    told = tool("generate", run, "the cat", "--max-tokens", 8, "--seed", 1)
    assert told.code == 0 and told.out.startswith("the cat") and told.err == ""
    assert tool("generate", run, "the cat", "--max-tokens", 8, "--seed", 1).out == told.out
    assert tool("generate", run, "--max-tokens", 8, "--seed", 1, stdin="the cat").out == told.out
    row = tool("generate", run, "the cat", "--max-tokens", 8, "--seed", 1, "--json").json
    assert printable("the cat" + row["text"]) == told.out.removesuffix("\n") and row["tokens"] <= 8
    many = tool("generate", run, "the", "-n", 3, "--json", "--max-tokens", 4, "--temperature", 0)
    assert len({row["text"] for row in many.json}) == 1 and len(many.json) == 3


def test_generate_refuses_what_cannot_be(finished: Finished, tool: Any, tmp_path: Path) -> None:
    run, _ = finished
    for arguments, code, message in [
        ((run, "x", "--temperature", "-1"), 2, "temperature"),
        ((run, "x", "--max-tokens", "0"), 2, "max_tokens"),
        ((run, "word " * 500), 2, "context"),
        ((tmp_path / "absent", "x"), 1, "does not exist"),
        ((tmp_path, "x"), 1, "holds no model"),
    ]:
        told = tool("generate", *arguments)
        assert (told.code, message in told.err) == (code, True), told
        assert "Traceback" not in told.err and told.out == ""


def test_terminal_escapes_do_not_reach_the_terminal(finished: Finished, tool: Any) -> None:
    run, _ = finished
    told = tool("generate", run, "a\x1b]0;owned\x07\x9b1m", "--max-tokens", 1)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", told.out)


def test_chat_answers_each_line_and_says_that_it_never_learned(
    finished: Finished, tool: Any
) -> None:
    run, _ = finished
    told = tool(
        "chat", run, "--max-tokens", 4, "--json", stdin="hello\n\n/reset\nhello\n/quit\nx\n"
    )
    assert told.code == 0 and "never taught dialogue" in told.err
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert [row["role"] for row in rows] == ["assistant"] * 2
    assert tool("chat", run, "--max-tokens", 4, stdin="").out == ""


def test_eval_prints_the_rule_and_every_token(
    finished: Finished, tool: Any, tmp_path: Path
) -> None:
    run, _ = finished
    file = tmp_path / "new.txt"
    file.write_text("the cat sat on the mat", encoding="utf-8")
    text = tool("eval", run, "--data", file)
    assert "separate windows of 32 tokens" in text.out and "bits per byte" in text.out
    row = tool("eval", run, "--data", file, "--stride", 8, "--json").json
    assert row["bytes"] == 22 and row["documents"] == 1 and "moved on by 8" in row["rule"]
    assert tool("eval", run, "--data", tmp_path / "absent.txt").code == 1


def test_report_is_written_again_and_loads_nothing(
    finished: Finished, tool: Any, tmp_path: Path
) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    told = tool("report", copy)
    assert told.out.strip() == str(copy / "report.html")
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(src|href)\s*=|@import|url\(|<script""", page)
    assert "Kneser-Ney" in page and "<svg" in page and "prefers-color-scheme" in page
    (copy / "result.json").unlink()  # a run that goes on
    assert tool("report", copy).code == 0
    assert "not finished" in (copy / "report.html").read_text(encoding="utf-8")
    assert tool("report", tmp_path).code == 1


def test_an_unfinished_run_opens_at_its_best_checkpoint(
    finished: Finished, tool: Any, tmp_path: Path
) -> None:
    run, _ = finished
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "model")
    same = [tool("generate", r, "the", "--max-tokens", 5, "--temperature", 0) for r in (run, copy)]
    assert same[0].out == same[1].out and same[1].code == 0


def test_settings_of_the_task_are_changed_for_a_translation(tool: Any, tmp_path: Path) -> None:
    rows = [{"source": f"{n} dogs run.", "target": f"{n} Hunde laufen."} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = tool(
        "train", "translation", "--data", tmp_path / "rows.jsonl", "--run", tmp_path / "run", "-q",
        "tokenizer.vocab_size=300", "model.d_model=32", "model.n_layers=1", "model.n_heads=1",
        "training.max_steps=2",
    )  # fmt: skip
    assert told.code == 0, told.err
    page = "3 dogs run. 4 dogs run.\n\n5 dogs run."
    ask = ("run", tmp_path / "run", page, "--json", "--set")
    document = tool(*ask, "task.mode=document", "--set", "task.n_beams=1")
    assert document.code == 0, document.err
    assert document.json["translation"].count("\n\n") == 1
    assert "\n\n" not in tool(*ask, "task.mode=sentence").json["translation"]
    for setting, told_of in [
        ("task.mode=page", "task.mode"), ("task.beams=1", "n_beams"), ("training.lr=1", "task"),
        ("mode", "section.key"),
    ]:  # fmt: skip
        wrong = tool(*ask, setting)
        assert wrong.code == 2 and told_of in wrong.err, wrong.err
