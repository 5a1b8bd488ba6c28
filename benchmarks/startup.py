"""How long `inkstone --help` takes, and whether `import inkstone` leaves torch alone.

    python -m benchmarks.startup

Reach: 0.3 s, no torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import common

ROUNDS = 10


def main() -> None:
    command = [str(Path(sys.executable).with_name("inkstone")), "--help"]
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    check = "import inkstone, sys; print('torch' in sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", check], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = statistics.median(times[1:])
    common.report(
        "startup", [{"inkstone --help (s)": seconds, "import loads torch": loaded.stdout.strip()}]
    )


if __name__ == "__main__":
    main()
