"""Every family has a recipe that trains it, and a page in both languages that the index names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inkstone import recipe, registry

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "models"
FAMILIES = registry.names("models")
INDEXES = ("README.md", "README.zh-CN.md")


def pages(family: str, suffix: str) -> list[Path]:
    """The pages in one language whose first lines link to the family's file."""
    chinese = suffix == ".zh-CN.md"
    link = f"inkstone/models/{family}.py)"
    return [
        path
        for path in sorted(DOCS.glob("*.md"))
        if path.name.endswith(".zh-CN.md") == chinese and path.name not in INDEXES
        if link in path.read_text(encoding="utf-8").partition("\n## ")[0]
    ]


def trained(family: str) -> list[str]:
    """The shipped recipes that train a family, or say in their comment how they do."""
    shown = re.compile(rf"^#.*\bmodel\.family=\"?{family}\b", re.MULTILINE)
    return [
        name
        for name in recipe.shipped()
        if recipe.load(name).model.family == family
        or shown.search((recipe.SHIPPED / f"{name}.toml").read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recipe_trains_it(family: str) -> None:
    assert trained(family), f"no recipe in inkstone/recipes has model.family = {family!r}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("suffix", [".md", ".zh-CN.md"])
def test_a_page_tells_of_it(family: str, suffix: str) -> None:
    found = pages(family, suffix)
    assert found, f"no docs/models/*{suffix} begins with a link to inkstone/models/{family}.py"
    other = ".md" if suffix == ".zh-CN.md" else ".zh-CN.md"
    for path in found:
        text = path.read_text(encoding="utf-8")
        translation = path.name.removesuffix(suffix) + other
        assert f"({translation})" in text, f"{path.name} does not link to its translation"
        assert "```python\n" in text and "$" in text, f"{path.name} shows no formula or no code"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("index", "suffix"), [(INDEXES[0], ".md"), (INDEXES[1], ".zh-CN.md")])
def test_the_index_names_page_and_recipe(index: str, suffix: str, family: str) -> None:
    rows = [
        line
        for line in (DOCS / index).read_text(encoding="utf-8").splitlines()
        if any(f"({path.name})" in line for path in pages(family, suffix))
    ]
    assert rows, f"docs/models/{index} has no row for {family}"
    assert any(f"`{name}`" in row for row in rows for name in trained(family)), rows
