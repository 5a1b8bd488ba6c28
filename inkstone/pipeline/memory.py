"""How much memory this process needs at most, from a moment on."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"  # proc(5): sets the peak back to what is resident now


class PeakMemory:
    """Measures from when it is made; Linux alone tells."""

    def __init__(self) -> None:
        gc.collect()
        self._known = False
        with contextlib.suppress(OSError):
            CLEAR.write_text(CLEAR_PEAK, encoding="ascii")
            self._known = True

    def peak(self) -> int | None:
        """Bytes of the whole process at its peak since; None where the system does not say."""
        if not self._known:
            return None
        with contextlib.suppress(OSError, ValueError, IndexError):
            for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None
