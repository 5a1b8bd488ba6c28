"""Imports point one way: read with ast, nothing is imported."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "inkstone"
LAYERS = [
    {"errors", "registry", "config", "device", "files"},
    {"text", "speech", "nn", "vectors"},
    {"tokenizers"},
    {"corpora", "models"},
    {"tasks", "checkpoint"},
    {"training", "inference"},
    {"evaluation", "compression", "inspection", "safety", "planning"},
    {"recipe", "pipeline", "api", "report", "recipes", "labelling"},
    {"serving"},
    {"cli", "__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SIDEWAYS = {  # rooms of one layer that may use one another
    frozenset({"registry", "errors"}),
    frozenset({"files", "errors"}),
    frozenset({"config", "errors"}),
    frozenset({"device", "errors"}),
    frozenset({"device", "config"}),
    frozenset({"planning", "evaluation"}),
    frozenset({"pipeline", "recipe"}),
    frozenset({"pipeline", "report"}),
    frozenset({"__main__", "cli"}),
    frozenset({"api", "pipeline"}),
    frozenset({"api", "recipe"}),
    frozenset({"report", "recipe"}),
    frozenset({"recipe", "recipes"}),
}


def _room(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0].removesuffix(".py")


def _imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            base = node.module or ""
            modules = [f"inkstone.{a.name}" for a in node.names] if base == "inkstone" else [base]
        else:
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"relative import: {path}"
            continue
        rooms |= {m.split(".")[1] for m in modules if m.startswith("inkstone.")}
    return {r for r in rooms if r in LEVEL or (ROOT / r).exists() or (ROOT / f"{r}.py").exists()}


FILES = sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = _room(path)
    assert room in LEVEL, f"{room} has no place in the layers"
    for other in _imported_rooms(path) - {room}:
        sideways = frozenset({room, other}) in SIDEWAYS
        assert LEVEL[other] < LEVEL[room] or sideways, f"{path} ({room}) imports {other}"
