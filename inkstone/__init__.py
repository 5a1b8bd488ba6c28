"""Inkstone: from a folder of text to a language model you own.

`import inkstone as ink` is light (no torch); the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LanguageModel", "__version__", "import_model", "load", "search", "train"]

if TYPE_CHECKING:
    from inkstone.api import LanguageModel, import_model, load, search, train


def __getattr__(name: str) -> Any:
    if name in {"LanguageModel", "import_model", "load", "search", "train"}:
        from inkstone import api

        return getattr(api, name)
    raise AttributeError(f"module 'inkstone' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
