"""The English prose that every Python installation carries: topics and docstrings.

Source files are read as text and parsed; nothing in them is imported or run.
"""

from __future__ import annotations

import ast
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from inkstone.text.document import Document

MIN_CHARS = 200
SKIPPED = {"test", "tests", "idle_test", "lib2to3", "site-packages", "dist-packages", "__pycache__"}


def python_prose() -> Iterator[Document]:
    """Documentation topics of the language, then docstrings of the standard library, in order."""
    library = Path(sysconfig.get_paths()["stdlib"])
    yield from _topics(library / "pydoc_data" / "topics.py")
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if not SKIPPED.intersection(relative.parts) and relative.parts[0] != "pydoc_data":
            yield from _docstrings(path, str(relative))


def _topics(path: Path) -> Iterator[Document]:
    """Topics that no longer one holds already: a section of a chapter is a topic as well."""
    tree = _parse(path)
    found = [
        Document(value.value, "pydoc_data/topics.py", number)
        for node in (ast.walk(tree) if tree else ())
        if isinstance(node, ast.Dict)
        for number, value in enumerate(node.values, start=1)
        if isinstance(value, ast.Constant) and isinstance(value.value, str)
    ]
    seen: set[str] = set()
    longest_first = sorted(found, key=lambda document: -len(document.text))
    kept = [document for document in longest_first if _is_new(document.text, seen)]
    yield from sorted(kept, key=lambda document: document.index)


def _is_new(text: str, seen: set[str]) -> bool:
    """Whether most paragraphs of a text have not been seen; they are from now on."""
    paragraphs = {" ".join(paragraph.split()) for paragraph in text.split("\n\n")}
    new = paragraphs - seen
    seen |= paragraphs
    return sum(map(len, new)) > 0.5 * sum(map(len, paragraphs))


def _docstrings(path: Path, name: str) -> Iterator[Document]:
    """The docstrings of one module as one document, if together they are long enough."""
    tree = _parse(path)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, kinds) and (text := ast.get_docstring(node, clean=False)):
            found.append(inspect.cleandoc(text))
    joined = "\n\n".join(found)
    if len(joined) >= MIN_CHARS:
        yield Document(joined, name)


def _parse(path: Path) -> ast.Module | None:
    try:
        source = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None  # an installation without sources, or a file that is data for other tools
