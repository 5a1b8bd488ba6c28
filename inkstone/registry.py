"""The folder is the registry: `load("models", "gpt2")` imports `inkstone.models.gpt2`.

Adding a model or a task is adding one file. Other packages add theirs through the entry-point
group `inkstone.<room>` (for example `inkstone.models`).
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from inkstone.errors import MissingExtraError, UnknownNameError


def names(room: str) -> list[str]:
    """Sorted names of all residents of a room, our own and those of entry points."""
    package = importlib.import_module(f"inkstone.{room}")
    own = {m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")}
    return sorted(own | set(_entry_points(room)))


def load(room: str, name: str) -> ModuleType:
    """Import the resident `name` of `room`.

    Raises:
        UnknownNameError: No such resident; the message lists the known ones and the nearest.
    """
    known = names(room)
    if name not in known:
        raise UnknownNameError(f"unknown name {name!r} in {room}", fix=did_you_mean(name, known))
    external = _entry_points(room).get(name)
    if external is not None:
        module: ModuleType = external.load()
        return module
    return importlib.import_module(f"inkstone.{room}.{name}")


def extra(module: str, extra_name: str) -> ModuleType:
    """Import an optional dependency lazily.

    Raises:
        MissingExtraError: It is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"this needs the package {module.split('.')[0]!r}, which is not installed",
            fix=f"pip install 'inkstone[{extra_name}]'",
        ) from error


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """One sentence that offers the nearest known name and lists all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"


@functools.cache  # reading them takes longer than opening a small model
def _entry_points(room: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {e.name: e for e in importlib.metadata.entry_points(group=f"inkstone.{room}")}
