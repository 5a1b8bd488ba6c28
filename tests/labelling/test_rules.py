"""Rules: what they hold of, and files of rules that are no good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inkstone.errors import DataError
from inkstone.labelling import rules as module
from inkstone.labelling.rules import Rule, load_rules, vote


@pytest.mark.parametrize(
    ("conditions", "value", "holds"),
    [
        ({"keywords": ["prize"]}, "A PRIZE!", True),
        ({"keywords": ["prize"]}, "enterprizes", False),
        ({"keywords": ["claim now", "x"]}, "claim \n now", True),
        ({"keywords": ["c++", ".net"]}, "I like C++.", True),
        ({"keywords": ["很差"]}, "服务很差劲", True),
        ({"regex": r"\d{3}"}, "call 123", True),
        ({"regex": "Call"}, "call", False),
        ({"regex": "a", "keywords": ["b"]}, "a b", True),
        ({"regex": "a", "keywords": ["b"]}, "a", False),
        ({"equals": "Short  Code"}, " short code ", True),
        ({"equals": "short"}, "short code", False),
        ({"at_least": 3, "at_most": 5}, "4.5", True),
        ({"at_least": 3}, 2, False),
        ({"at_least": 3}, "many", False),
        ({"at_most": 3}, float("nan"), False),
        ({"min_chars": 2, "max_chars": 3}, "abc", True),
        ({"max_chars": 3}, "abcd", False),
        ({"max_chars": 0}, "", True),
        ({"max_chars": 3}, None, False),
    ],
)
def test_what_a_rule_holds_of(conditions: dict[str, Any], value: Any, holds: bool) -> None:
    assert Rule(label="x", **conditions).holds(value) is holds


def test_votes() -> None:
    rules = [
        Rule(label="b", keywords=("free",)),
        Rule(label="a", field="sender", equals="mum"),
    ]
    texts = ["free", "hi", "free"]
    fields = [{}, {"sender": "mum"}, {"sender": "Mum"}]
    assert vote(rules, texts, fields, ["a", "b"]).tolist() == [[1, -1], [-1, 0], [1, 0]]
    with pytest.raises(DataError, match="votes for 'b'"):
        vote(rules, texts, fields, ["a", "c"])


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text('[[rule]]\nlabel = " spam "\nkeywords = ["x"]\n[[rule]]\nname = "n"\n'
                    'label = "ham"\nregex = "y"\n')  # fmt: skip
    first, second = load_rules(path)
    assert (first.label, first.name, second.name) == ("spam", "spam 1", "n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no \\[\\[rule"),
        ("rule = 3", "no \\[\\[rule"),
        ("[[rule]]\nlabel='a'", "no condition"),
        ("[[rule]]\nlabel='a'\nregexp='x'", "rule 1: regexp"),
        ("[[rule]]\nlabel=''\nregex='x'", "label"),
        ("[[rule]]\nlabel='a'\nregex='('", "cannot be read"),
        ("[[rule]]\nlabel='a'\nregex='a{99999999999}'", "cannot be read"),
        ("[[rule]]\nlabel='a'\nkeywords=['']", "empty keyword"),
        ("[[rule]]\nlabel='a'\nat_least=nan", "finite"),
        ("[[rule]]\nlabel='a'\nregex='x'\n[more]", "unknown key 'more'"),
        ("[[rule]]\nlabel='a'\nregex='x'\nname='n'\n" * 2, "twice"),
        ("rule = " + "[" * 100_000, "TOML"),
        ("\xff", "TOML"),
    ],
)
def test_files_that_are_no_good(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rules.toml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        load_rules(path)
    with pytest.raises(DataError, match="No such file"):
        load_rules(tmp_path / "none")


def test_a_pattern_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    rule = Rule(label="a", name="slow", regex="(a+)+b")
    with pytest.raises(DataError, match="'slow'"):
        vote([rule], ["a" * 60], [{}], ["a", "b"])
    assert vote([rule], ["aab"], [{}], ["a", "b"]).tolist() == [[0]], "and the next goes on"
