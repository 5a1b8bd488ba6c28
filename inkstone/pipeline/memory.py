"""How much memory a process needs at most; Linux alone tells."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

CLEAR = Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"  # proc(5): sets the peak back to what is resident now


class PeakMemory:
    """Of this process, from when it is made."""

    def __init__(self) -> None:
        gc.collect()
        self._known = False
        with contextlib.suppress(OSError):
            CLEAR.write_text(CLEAR_PEAK, encoding="ascii")
            self._known = True

    def peak(self) -> int | None:
        """Bytes of the whole process at its peak since; None where the system does not say."""
        return peak_of("self") if self._known else None


def peak_of(process: int | str) -> int | None:
    """Bytes that a living process has had at its peak since its program began.

    The figure of `wait4` will not do: it holds what the parent had when the child was made.
    """
    with contextlib.suppress(OSError, ValueError, IndexError):
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None
