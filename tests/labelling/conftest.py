"""A table whose labels a bag of words can learn, and projects over it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from inkstone.labelling.project import Project
from inkstone.labelling.store import Store
from inkstone.labelling.table import read_texts

SPORT = "match goal team coach season win score player league cup"
MONEY = "market share bank price profit stock trade fund rate cash"
FILLER = "the a of on and to in for with said new after year two"


def sentences(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Texts of both kinds in turn: two words of their kind among words that say nothing."""
    draw, words_of = random.Random(seed), {"sport": SPORT, "money": MONEY}
    rows = []
    for number in range(n):
        label = ("sport", "money")[number % 2]
        words = draw.sample(words_of[label].split(), 2) + draw.choices(FILLER.split(), k=6)
        draw.shuffle(words)
        rows.append({"text": " ".join(words) + f" {number}", "truth": label})
    return rows


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "news.jsonl"
    path.write_text("\n".join(map(json.dumps, sentences(200))))
    return path


Maker = Callable[..., Project]


@pytest.fixture
def project(table: Path, tmp_path: Path) -> Maker:
    """Makes a project over the table; the same file of labels each time."""

    def make(labels: Sequence[str] = ("money", "sport"), label_field: str | None = None) -> Project:
        texts = read_texts(table, "text", label_field)
        return Project(texts, Store(tmp_path / "labels.jsonl", labels))

    return make
