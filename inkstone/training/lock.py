"""One writer a run folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from inkstone.errors import RunError


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run folder's lock; the kernel frees it however the process ends.

    Raises:
        RunError: Another process is writing here (names its process id), or the folder cannot be
            written at all.
    """
    try:
        descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise RunError(
            f"cannot write the run folder {run}: {error.strerror}",
            fix="check that it exists, may be written and has room",
        ) from error
    try:
        _take(descriptor, run)
        with contextlib.suppress(OSError):  # the number is a courtesy; a full disk may refuse it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def check_free(run: Path) -> None:
    """A look ahead, before anything slow is done: does another process write this run?

    Raises:
        RunError: It does; as in `run_lock`.
    """
    try:
        descriptor = os.open(run / "lock", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # no run, or not one that can be written: said later, with what is wrong
    try:
        _take(descriptor, run)
    finally:
        os.close(descriptor)


def _take(descriptor: int, run: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise RunError(
            f"{run} is being written by another process (pid {owner})",
            fix="wait for it or stop it, or choose another folder with --run",
        ) from error
    except OSError as error:
        raise RunError(
            f"{run} cannot be locked: {error.strerror}",
            fix="put the run on a local disk; this file system has no locks",
        ) from error
