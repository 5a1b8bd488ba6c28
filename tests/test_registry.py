"""registry.py: a folder is a list, and its errors help."""

from __future__ import annotations

import importlib.metadata

import pytest

from inkstone import registry
from inkstone.errors import UnknownNameError


def test_unknown_names_list_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown name 'gpt3x' in models") as error:
        registry.load("models", "gpt3x")
    assert "did you mean 'gpt3'?" in str(error.value.fix) and "llama" in str(error.value.fix)


def test_entry_points_are_residents_and_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        asked.append(group)
        return [importlib.metadata.EntryPoint("theirs", "json", group)]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    registry._entry_points.cache_clear()
    try:
        assert {"theirs", "gpt2"} <= set(registry.names("models"))
        assert registry.load("models", "theirs").__name__ == "json"
        assert asked == ["inkstone.models"]
    finally:
        registry._entry_points.cache_clear()
