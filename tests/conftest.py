"""Fixtures that several rooms share."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

SHARED_DATA = Path(
    os.environ.get("INKSTONE_SHARED_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"real data sets not found at {SHARED_DATA} (set INKSTONE_SHARED_DATA)")
    return SHARED_DATA


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, driven by Playwright; tests that need it skip where it is absent."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    with api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


_watched: list[tuple[threading.Thread, Path]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watched or threading.current_thread() is not _watched[-1][0]:
        return
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn")):
        raise AssertionError(f"{event} {arguments}")
    if event == "open" and isinstance(arguments[2], int):
        path, _, flags = arguments
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        inside = isinstance(path, int) or os.path.abspath(os.fsdecode(path)).startswith(
            str(_watched[-1][1])
        )
        if writes and not inside:
            raise AssertionError(f"{path} was opened for writing")


@pytest.fixture(scope="session")
def _audited() -> None:
    sys.addaudithook(_audit)


@pytest.fixture
def no_side_effects(
    tmp_path: Path, _audited: None
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """A block in which starting a program, a socket or writing outside `tmp_path` is an error."""

    @contextlib.contextmanager
    def watch() -> Iterator[None]:
        _watched.append((threading.current_thread(), tmp_path))
        try:
            yield
        finally:
            _watched.pop()

    return watch
