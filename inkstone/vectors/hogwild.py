"""Threads that work through numbered chunks side by side on shared arrays, without locks.

Recht et al. 2011, "Hogwild!": where steps touch few rows each, two threads rarely meet, and what is
lost when they do does not matter. With one worker the chunks come in order and the result is the
same every time; with several it is not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

TICK_S = 0.1  # how often the main thread looks up: for signals, progress and pauses


def run(
    work: Callable[[int], None],
    first: int,
    last: int,
    *,
    workers: int,
    pause: Callable[[int], bool],
) -> int:
    """Call `work` with every number from `first` to `last` − 1, in threads.

    Args:
        work: One chunk; should hold no interpreter lock for most of its time.
        first: Begin here.
        last: End before this.
        workers: Threads.
        pause: Called in this thread every TICK_S with the number of the next chunk; True ends the
            work early. Chunks that were begun are finished first.

    Returns:
        The number of the next chunk: all before it are done.

    Raises:
        BaseException: Whatever `work` raised first, or `pause`; the threads have ended then.
    """
    lock, stop, ended = threading.Lock(), threading.Event(), threading.Event()
    failures: list[BaseException] = []
    upcoming, alive = first, workers

    def loop() -> None:
        nonlocal upcoming, alive
        try:
            while not stop.is_set():
                with lock:
                    number = upcoming
                    if number >= last:
                        return
                    upcoming += 1
                work(number)
        except BaseException as error:
            failures.append(error)
            stop.set()
        finally:
            with lock:
                alive -= 1
                if not alive:
                    ended.set()

    threads = [threading.Thread(target=loop, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while not ended.wait(TICK_S):
            if not stop.is_set() and pause(upcoming):
                stop.set()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]
    return upcoming
