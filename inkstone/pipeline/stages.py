"""Stages that need not run twice: results kept under the hash of everything they depend on.

A key covers the bytes of the input, the settings and the code of the room that does the work;
never a time stamp. A result appears with one rename, so it is whole or absent; two processes that
want the same one wait for each other through a lock that the kernel frees.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from inkstone.errors import RunError
from inkstone.files import sync
from inkstone.pipeline.observer import Observer

CACHE_VARIABLE = "INKSTONE_CACHE"
PACKAGE = Path(__file__).resolve().parents[1]


def cache_folder(given: Path | None = None) -> Path:
    """The folder given, else $INKSTONE_CACHE, else the user's cache folder."""
    if given is not None:
        return Path(given)
    named = os.environ.get(CACHE_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_cache_dir("inkstone")) / "stages"


def key_of(*parts: Any) -> str:
    """A short hash of values that JSON can hold; equal values give equal keys everywhere."""
    encoded = json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.sha256(encoded).hexdigest()[:24]


@functools.cache
def code_hash(room: str) -> str:
    """Hash of the source of one room, so that a change of the code is a change of the input."""
    digest = hashlib.sha256()
    for path in sorted((PACKAGE / room).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@dataclass
class StageCache:
    """Finished stages under `folder`, by name and key."""

    folder: Path
    observer: Observer

    def get(
        self, name: str, key: str, build: Callable[[Path], str], describe: Callable[[Path], str]
    ) -> Path:
        """The stage's folder, built now if nobody has built it before.

        Args:
            name: Of the stage, for people and for the folder's name.
            key: Hash of all that the result depends on.
            build: Fills the private folder it is given and returns a one-line result.
            describe: The one-line result of a folder that is there already.

        Raises:
            RunError: The cache folder cannot be written.
        """
        target = self.folder / f"{name}-{key}"
        began = time.monotonic()
        if target.is_dir():
            self._tell_reused(name, target, describe, began)
            return target
        try:
            with self._lock(f"{name}-{key}"):
                if target.is_dir():  # another process was faster
                    self._tell_reused(name, target, describe, began)
                    return target
                self.observer.stage(name)
                line = self._build(target, build)
        except PermissionError as error:
            raise RunError(
                f"the cache folder {self.folder} cannot be written: {error.strerror}",
                fix=f"choose another with --cache or ${CACHE_VARIABLE}",
            ) from error
        self.observer.stage_done(name, line, time.monotonic() - began)
        return target

    def _build(self, target: Path, build: Callable[[Path], str]) -> str:
        private = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        for stale in target.parent.glob(f".{target.name}.*.tmp"):
            shutil.rmtree(stale, ignore_errors=True)  # we hold the lock: its writer is dead
        private.mkdir()
        try:
            line = build(private)
            private.rename(target)
        except BaseException:
            shutil.rmtree(private, ignore_errors=True)
            raise
        sync(target.parent)
        return line

    def _tell_reused(
        self, name: str, target: Path, describe: Callable[[Path], str], began: float
    ) -> None:
        line = f"reused: {describe(target)} (same input and settings)"
        self.observer.stage_done(name, line, time.monotonic() - began, reused=True)

    @contextlib.contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.observer.note("another process is preparing the same data; waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
