"""Signals of a training run: they ask for a durable checkpoint, and never cut a write in two."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class TrainingInterrupted(Exception):
    """A signal ended the run after a durable checkpoint; `signum` says which."""

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} at step {step}")
        self.signum = signum
        self.step = step


class StopRequested(Exception):
    """Raised where work may be dropped: between micro-batches, and anywhere in an evaluation."""


class Signals:
    """SIGTERM, SIGHUP and a first SIGINT set a flag; a second SIGINT is KeyboardInterrupt at once.

    Signals that were ignored when the program started (nohup, a background job) stay ignored.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._droppable = False

    def check(self) -> None:
        """Raise StopRequested if a signal has come."""
        if self.received is not None:
            raise StopRequested

    @contextlib.contextmanager
    def droppable(self) -> Iterator[None]:
        """Within the block a signal raises StopRequested right where the program is."""
        self.check()
        self._droppable = True
        try:
            yield
        finally:
            self._droppable = False

    @contextlib.contextmanager
    def watch(self, on_continue: Callable[[], None]) -> Iterator[None]:
        """Handle signals within the block; `on_continue` is called on SIGCONT.

        Outside the main thread Python delivers no signals, and nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers = dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGINT), self._handle)
        handlers[signal.SIGCONT] = lambda signum, frame: on_continue()
        before = {
            signum: signal.signal(signum, handler)
            for signum, handler in handlers.items()
            if signal.getsignal(signum) is not signal.SIG_IGN
        }
        try:
            yield
        finally:
            for signum, old in before.items():
                signal.signal(signum, old or signal.SIG_DFL)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signum
        if self._droppable:
            self._droppable = False
            raise StopRequested
