"""Words of spaced scripts and of Chinese; jieba touches no file but its own."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest

from inkstone.errors import MissingExtraError
from inkstone.text import segment
from inkstone.text.segment import words


def test_words_and_marks() -> None:
    assert words("It's a dog's life -- isn’t it?") == [
        "It's", "a", "dog's", "life", "-", "-", "isn’t", "it", "?",
    ]  # fmt: skip
    assert words(" \n\t") == [] and words("naïve café, 3.14") == [
        "naïve", "café", ",", "3", ".", "14",
    ]  # fmt: skip


def test_chinese_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jieba")
    segment._jieba.cache_clear()
    opened: list[str] = []
    real = builtins.open

    def watched(file: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(file))
        return real(file, *arguments, **options)

    monkeypatch.setattr(builtins, "open", watched)
    assert words("我来到北京清华大学 。", "jieba") == ["我", "来到", "北京", "清华大学", "。"]
    assert not [name for name in opened if "jieba.cache" in name]


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    segment._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(MissingExtraError, match=r"inkstone\[zh\]"):
        words("中文", "jieba")
