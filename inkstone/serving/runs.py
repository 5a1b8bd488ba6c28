"""Runs in training: what their logs tell, for whoever watches the server.

Only folders that were named to the server are looked at: each is a run, or holds runs. No name in a
request becomes a path, and a link is not followed, so that nothing outside of them is readable.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inkstone.errors import UsageError
from inkstone.serving.errors import ApiError
from inkstone.training.tail import Tail, is_number

LOG = "log.jsonl"
MOST_RUNS = 64
MOST_ENTRIES = 4096  # of a folder that are looked at
QUIET_S = 120.0  # a run that has told nothing for so long is not in training any more
FIGURES = ("step", "max_steps", "loss", "tokens", "tokens_per_s", "epoch", "elapsed_s",
           "remaining_s")  # fmt: skip
WHOLE = ("step", "max_steps", "tokens")


class Watch:
    """Looks at runs; used from threads, one at a time.

    Args:
        folders: Runs, or folders of runs.

    Raises:
        UsageError: One of them is no folder.
    """

    def __init__(self, folders: Sequence[str | Path] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]
        for folder in self.folders:
            if not folder.is_dir():
                raise UsageError(f"{folder} is no folder", fix="name a run, or a folder of runs")
        self._tails: dict[str, Tail] = {}
        self._lock = threading.Lock()

    def all(self) -> list[dict[str, Any]]:
        """Of each run its name and last figures, the one that was written last first."""
        with self._lock:
            self._look()
            found = [self._about(name, tail) for name, tail in self._tails.items()]
        return sorted(found, key=lambda run: run["quiet_s"])

    def one(self, name: str) -> dict[str, Any]:
        """The curves of one run, too.

        Raises:
            ApiError: There is no such run.
        """
        with self._lock:
            self._look()
            tail = self._tails.get(name)
            if tail is None:
                raise ApiError(404, f"there is no run {name[:200]!r}", code="run_not_found")
            scores = {key: curve.points for key, curve in tail.scores.items()}
            return {**self._about(name, tail), "losses": tail.loss.points, "scores": scores}

    def _look(self) -> None:
        """Read what is new, and forget what is gone."""
        tails: dict[str, Tail] = {}
        for name, folder in self._found():
            tail = self._tails.get(name)
            if tail is None or tail.path.parent != folder:
                tail = Tail(folder / LOG)
            if tail.read():
                tails[name] = tail
            if len(tails) == MOST_RUNS:
                break
        self._tails = tails

    def _found(self) -> Iterator[tuple[str, Path]]:
        """Names and folders that may be runs; of two with one name the first is meant."""
        seen = set()
        for folder in self.folders:
            for name, path in _inside(folder):
                if name not in seen:
                    seen.add(name)
                    yield name, path

    @staticmethod
    def _about(name: str, tail: Tail) -> dict[str, Any]:
        figures = {key: tail.last.get(key) for key in FIGURES}
        told: dict[str, Any] = {k: v if is_number(v) else None for k, v in figures.items()}
        told |= {k: None for k in WHOLE if type(told[k]) is not int}
        quiet_s = max(0.0, time.time() - tail.changed_at)
        done = told["step"] is not None and told["step"] == told["max_steps"]
        return {"id": name, "object": "run", "in_training": quiet_s < QUIET_S and not done,
                "quiet_s": round(quiet_s, 1), **told}  # fmt: skip


def _inside(folder: Path) -> Iterator[tuple[str, Path]]:
    if os.path.lexists(folder / LOG):
        yield folder.resolve().name, folder
        return
    try:
        with os.scandir(folder) as entries:
            listed = [entry for entry, _ in zip(entries, range(MOST_ENTRIES), strict=False)]
    except OSError:
        return  # it was there when the server began
    newest = sorted(listed, key=_changed, reverse=True)
    for entry in newest:
        if entry.is_dir(follow_symlinks=False) and os.path.lexists(Path(entry.path) / LOG):
            yield entry.name, Path(entry.path)


def _changed(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat(follow_symlinks=False).st_mtime
    except OSError:
        return 0.0
