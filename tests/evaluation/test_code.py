"""evaluation/code.py: what is drawn from Python files, and what counts as right."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import inkstone as ink
from inkstone.cli.main import main
from inkstone.errors import DataError
from inkstone.evaluation import code
from inkstone.inference.generate import Generator
from inkstone.inference.stream import Generation
from inkstone.models import llama
from inkstone.tasks.fill_in_the_middle import ROLES
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train

SOURCE = '''"""A file."""

import math


def area(radius):
    """Of a circle.

    At column four.
    """
    # a comment
    square = radius ** 2
    return math.pi * square


class Circle:
    @property
    def text(self):
        name = """one
two"""
        return name

    def short(self): return 1
'''


def test_heads_end_before_the_first_statement_behind_the_docstring() -> None:
    heads = list(code._heads(SOURCE))
    assert [h.before[h.start :].splitlines()[0] for h in heads] == [
        "def area(radius):",
        "    @property",
    ]
    assert heads[0].before.endswith('    """\n    # a comment\n') and heads[0].indent == 4
    assert heads[1].before.endswith("    def text(self):\n") and heads[1].indent == 8


def test_holes_are_lines_of_functions_and_put_back_give_the_file() -> None:
    holes = list(code._holes(SOURCE))
    assert [h.line for h in holes] == [
        "square = radius ** 2",
        "return math.pi * square",
        "return name",
    ]
    assert all(h.before + h.line + h.after == SOURCE for h in holes)


@pytest.mark.parametrize(
    ("written", "unfinished", "text", "parses"),
    [
        ("    return 1\n\n\ndef other():\n    pass\n", True, "    return 1", True),
        ("    return (1,\n", True, "", False),
        ("    return 1\n    if", True, "    return 1", True),
        ("    return (\n", False, "    return (", False),
        ("", False, "", False),
        ("return 1\n", False, "", False),
    ],
)  # fmt: skip
def test_a_body_ends_where_a_line_stands_further_left(
    written: str, unfinished: bool, text: str, parses: bool
) -> None:
    head = next(iter(code._heads(SOURCE)))
    body = code._body(head, written, unfinished)
    assert body.text == head.before[head.start :] + text and body.parses is parses


def test_a_method_is_parsed_where_it_stands() -> None:
    head = list(code._heads(SOURCE))[1]
    assert code._body(head, "        return self\n\n    def next(self):\n", True).parses
    assert not code._body(head, "        return self)\n", False).parses


class Parrot(Generator):
    """Answers with what stands behind the prompt in the source."""

    def generate(self, prompts: Any, config: Any = None, **_: Any) -> list[Generation]:
        assert self.tokenizer is not None
        found = []
        for ids in prompts:
            text = self.tokenizer.decode(ids[1:])
            rest = SOURCE[SOURCE.index(text) + len(text) :]
            found.append(Generation(rest.partition((config.stop or ("\0",))[0])[0], [], "stop"))
        return found


def test_who_knows_the_file_has_everything_right_and_fresh_weights_nothing() -> None:
    tokenizer = train([SOURCE] * 9, TokenizerConfig(vocab_size=300), roles=ROLES)
    shape = llama.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=512
    )
    generator = Generator(llama.Model(shape), tokenizer)
    fresh = code.write_python(generator, [SOURCE, "no python ("])
    by_name = {score.name: score for score in fresh.scores}
    assert fresh.tokens == len(tokenizer.encode(SOURCE))
    assert by_name["next token"].value < 0.2 and by_name["a hidden line"].value == 0
    assert len(fresh.functions) == 2 and len(fresh.lines) == 3

    plain = train([SOURCE] * 9, TokenizerConfig(vocab_size=300))  # has no marks
    parrot = Parrot(llama.Model(shape), plain)
    known = {s.name: s.value for s in code.write_python(parrot, [SOURCE]).scores}
    assert known["functions that parse"] == 1.0
    assert known["a hidden line, from what stands before it"] == 1.0
    assert "a hidden line" not in known


def test_next_tokens_are_those_of_the_logits() -> None:
    tokenizer = train([SOURCE] * 9, TokenizerConfig(vocab_size=300), roles=ROLES)
    shape = llama.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=64
    )
    generator = Generator(llama.Model(shape).eval(), tokenizer)
    ids = generator.encode(SOURCE)
    right = []
    for start in range(0, len(ids) - 1, 64):
        for end in range(start + 1, min(start + 64, len(ids) - 1) + 1):
            with torch.no_grad():
                logits = generator.model(torch.tensor([ids[start:end]]))[0, -1]
            right.append(int(logits.argmax()) == ids[end])
    assert code._matches(generator, SOURCE).tolist() == right


def test_what_is_no_python_is_an_error() -> None:
    tokenizer = train([SOURCE] * 9, TokenizerConfig(vocab_size=300), roles=ROLES)
    shape = llama.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, max_seq_len=64
    )
    generator = Generator(llama.Model(shape), tokenizer)
    with pytest.raises(DataError, match="none of the files is Python"):
        code.write_python(generator, ["Once upon a time", "x = ("])
    with pytest.raises(DataError, match="no function"):
        code.write_python(generator, ["x = 1\n"])
    with pytest.raises(DataError, match="none of the files"):
        code.write_python(generator, ["(" * 100_000, "-" * 100_000 + "1"])


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(12):
        text = SOURCE.replace("area", f"area{number}").replace("radius", f"r{number * 7}")
        (source / f"f{number}.py").write_text(text)
    (source / "notes.bin").write_text("passed over")
    recipe = [
        "code-python", "--data", str(source), "--run", str(tmp_path / "run"),
        "tokenizer.vocab_size=300", "corpus.seq_len=64", "model.d_model=32", "model.n_layers=1",
        "model.n_heads=2", "training.max_steps=3", "training.tokens_per_step=256",
        "training.precision=fp32", "evaluation.baselines=false", "text.dedup='none'",
    ]  # fmt: skip
    assert main(["train", *recipe]) == 0
    capsys.readouterr()
    run = str(tmp_path / "run")
    assert main(["eval", run, "--data", str(source), "--python", "--limit", "4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in report["scores"]][-1] == "a hidden line"
    assert len(report["functions"]) == 4 and len(report["lines"]) == 4
    assert main(["eval", run, "--data", str(source), "--python", "--limit", "4"]) == 0
    assert "wanted" in capsys.readouterr().out
    same = ink.load(run, device="cpu").score_python(source / "f1.py", limit=2)
    assert len(same.functions) == 2
    assert all(ast.parse(f.text) for f in same.functions if f.parses and not f.text[:1].isspace())
    assert main(["train", "--data", str(source), "--run", str(tmp_path / "other")]) == 1
    assert "text.source_code=true" in capsys.readouterr().err
