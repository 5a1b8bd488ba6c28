"""Every command and every Python block of the documentation runs; both languages show the same."""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from inkstone import recipe, registry
from inkstone.cli.main import main
from inkstone.serving.server import Server

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not path.name.endswith(".zh-CN.md")
)
# what makes a documented command short: its flags are still parsed and its run still ends
SHORT = [
    "tokenizer.vocab_size=300", "corpus.seq_len=32", "model.d_model=32", "model.n_layers=1",
    "model.n_heads=1", "training.tokens_per_step=256", "training.max_steps=3",
    "evaluation.sample_tokens=8", "evaluation.baselines=false",
]  # fmt: skip
OUTSIDE = {"make", "git", "pip", "cd", "python", "python3", "./configure"}


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """Arguments of every command in a page's `sh` blocks."""
    for kind, content in blocks(page):
        if kind == "sh":
            for line in content.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with `texts/` and the tables of `news/`, `captions/`, …, for a page's commands."""
    (tmp_path / "texts").mkdir()
    for number in range(30):
        text = f"Document {number} tells of the number {number * number}. " * 20
        (tmp_path / "texts" / f"{number}.txt").write_text(text + str(number) * 40)
    news = [
        {"text": f"The {w} won {n} to 0.", "label": w} for n in range(20) for w in ("cup", "law")
    ]
    captions = [{"en": f"{n} dogs run.", "de": f"{n} Hunde laufen."} for n in range(40)]
    talks = [{"instruction": f"Is {n} odd?", "output": "Yes." if n % 2 else "No."}
             for n in range(40)]  # fmt: skip
    pairs = [{"prompt": f"Is {n} odd?", "chosen": "Yes.", "rejected": "No."} for n in range(40)]
    questions = [
        {
            "question": f"Who won {n} to 0?",
            "context": f"The cup won {n} to 0.",
            "answers": "The cup",
        }
        for n in range(40)
    ]
    mails = [
        {"text": f"Dear all. We meet at {n}. Bring cake.", "summary": f"We meet at {n}"}
        for n in range(40)
    ]
    sentences = [
        {"tokens": ["Ada", "met", town, "."], "tags": ["B-PER", "O", "B-LOC", "O"]}
        for town in ["Rome", "Oslo", "Lima", "Bern"] * 10
    ]
    inbox = [
        {"text": f"{w} number {n} for you", "label": w if n < 3 else None}
        for n in range(30)
        for w in ("prize", "lunch")
    ]
    (tmp_path / "rules.toml").write_text(
        '[[rule]]\nlabel = "prize"\nkeywords = ["prize"]\n'
        '[[rule]]\nlabel = "lunch"\nregex = "lunch number [1-5]"\n'
    )
    tables = {
        "sentences": sentences,
        "news": news,
        "captions": captions,
        "questions": questions,
        "mails": mails,
        "talks": talks,
        "pairs": pairs,
        "inbox": inbox,
    }
    for name, rows in tables.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_run(page: Path, folder: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            assert set(words[1:]) <= targets, words
        if words[0] == "python" and words[1] == "-m":
            assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file(), words
        if words[0] in OUTSIDE:
            continue
        assert words[0] == "inkstone", words
        arguments = words[1:]
        if arguments[0] == "demo":
            arguments = ["train", "data.embedded=python-prose", "--run", "runs/demo", *SHORT]
        elif arguments[0] == "train" and "--resume" not in arguments:
            given = {a.partition("=")[0] for a in arguments}
            arguments += [s for s in _short(arguments) if s.partition("=")[0] not in given]
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr("inkstone.serving.server.serve", _briefly)
            patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"hello\n"), encoding="utf-8"))
            code = main(arguments)
        assert code == 0, f"{page.name}: {shlex.join(words)}\n{err.getvalue()}"


def _briefly(hosted: Any, config: Any, **options: Any) -> None:
    """A server that starts, and stops at once."""
    free = config.model_copy(update={"port": 0})
    server = Server(hosted, free, **options)
    server.should_exit = True
    server.run()
    assert server.started


def _short(arguments: list[str]) -> list[str]:
    """Of SHORT what the recipe's family has."""
    named = len(arguments) > 1 and not arguments[1].startswith("--") and "=" not in arguments[1]
    family = recipe.load(arguments[1] if named else None).model.family
    fields = registry.load("models", family).Config.model_fields
    return [s for s in SHORT if not s.startswith("model.") or s[6:].partition("=")[0] in fields]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_runs(page: Path, folder: Path) -> None:
    names: dict[str, object] = {"__name__": "docs"}
    with redirect_stdout(io.StringIO()):
        for number, (kind, content) in enumerate(blocks(page)):
            if kind == "python":
                exec(compile(content, f"{page.name}, block {number}", "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_chinese_page_shows_the_same(page: Path) -> None:
    chinese = page.with_name(f"{page.stem}.zh-CN.md")
    if page.stem != "README":
        assert not chinese.exists() or blocks(chinese) == blocks(page)
        return
    shown = [(kind, _without_comments(content)) for kind, content in blocks(page)]
    assert [(kind, _without_comments(content)) for kind, content in blocks(chinese)] == shown


def _without_comments(content: str) -> str:
    return re.sub(r"[ \t]*# .*$", "", content, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "page", sorted({*PAGES, *ROOT.glob("*.zh-CN.md"), *(ROOT / "docs").rglob("*.zh-CN.md")}),
    ids=lambda p: str(p.relative_to(ROOT)),
)  # fmt: skip
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "@@" not in text, "a placeholder was left"
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
