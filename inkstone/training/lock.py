"""One writer a run folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inkstone.errors import RunError


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Hold the run folder's lock; the kernel frees it however the process ends.

    Raises:
        RunError: Another process is writing here; names its process id.
    """
    descriptor = os.open(run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise RunError(
                f"{run} is being written by another process (pid {owner})",
                fix="wait for it or stop it, or choose another folder with --run",
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
