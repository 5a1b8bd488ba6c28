"""New checkpoints of what is served: noticed, opened beside the old ones, and put in their place.

A run that trains puts a folder in place at once, when all of it is on the disk
(`inkstone.files.atomic_folder`), so a look at names, sizes and times is enough to see that there is
something new; its hashes are compared when it is opened. What cannot be opened, or is another
model, is told in the log and passed over until the folder changes again.

A request ends with the weights that it began with: who asks from now on gets the new model, with an
engine and a cache of its own, and the old one goes once the last of its requests has ended. Until
then both are in memory, and what is newer still has to wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from inkstone import api
from inkstone.errors import ModelError
from inkstone.serving.config import ServeConfig
from inkstone.serving.hosted import Hosted
from inkstone.serving.worker import Counts

log = logging.getLogger("inkstone.serving")


class Reloader:
    """Looks again and again, in a thread of its own.

    Args:
        hosted: What is served, by name; new models are put there, in the event loop.
        config: Of the server.
        told: Called with a name, and whether what was new is served now.

    Attributes:
        older: What the models did that are gone, or going, by name.
    """

    def __init__(
        self, hosted: dict[str, Hosted], config: ServeConfig, told: Callable[[str, bool], object]
    ) -> None:
        self.hosted, self.config, self._told = hosted, config, told
        self.older: dict[str, list[Counts]] = defaultdict(list)
        bases = [one for one in hosted.values() if one.source is not None and one.parent is None]
        self._seen = {one.name: one.state for one in bases}
        self._leaving: dict[asyncio.Task[None], Sequence[Hosted]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reload", daemon=True)

    def start(self) -> None:
        """Begin, where models are to be followed; called inside the event loop."""
        self._loop = asyncio.get_running_loop()
        if self.config.reload_s is not None:
            self._thread.start()

    async def stop(self, within_s: float) -> None:
        """Look no more, and let requests of old models end; what is being opened now is dropped."""
        self._ended.set()
        if self._leaving:
            await asyncio.wait(self._leaving, timeout=within_s)
        for old in [one for several in self._leaving.values() for one in several]:
            await asyncio.to_thread(old.stop)

    def look(self) -> None:
        """Open what has changed since the last look, one model after the other.

        One whose predecessor has not gone yet is left for later: two are in memory, never three.
        """
        leaving = {old[0].name for old in list(self._leaving.values())}
        for name, seen in self._seen.items():
            if name in leaving:
                continue
            source = self.hosted[name].source
            assert source is not None
            state = source.state()
            if state is not None and state != seen:
                self._seen[name] = state  # whatever comes of it, it is not tried again
                self._open(self.hosted[name])

    def _run(self) -> None:
        while not self._ended.wait(self.config.reload_s):
            self.look()

    def _open(self, old: Hosted) -> None:
        assert old.source is not None and self._loop is not None
        try:
            new = old.source.open(self.config)
            check_alike(old.model, new[0].model)
        except Exception as error:  # whatever is wrong with the new one, the old one is sound
            log.warning("%s: what is new cannot be served, the old one stays: %s", old.name, error)
            self._told(old.name, False)
            return
        if not self._ended.is_set() and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._put, new)

    def _put(self, new: Sequence[Hosted]) -> None:
        """Give a model and its adapters the names of older ones."""
        if self._ended.is_set():
            return
        old = [self.hosted[one.name] for one in new]
        for one, before in zip(new, old, strict=True):
            one.start()
            self.hosted[one.name] = one
            if before.worker is not None:
                self.older[one.name].append(before.worker.counts_of[before.adapter])
        leaving = asyncio.create_task(_leave(old))
        self._leaving[leaving] = old
        leaving.add_done_callback(self._leaving.pop)
        step = "" if new[0].step is None else f" of step {new[0].step:,}"
        log.info("%s: the weights%s answer from now on", new[0].name, step)
        self._told(new[0].name, True)


async def _leave(old: Sequence[Hosted]) -> None:
    """Wait until nobody uses some models that share an engine, and end their threads."""
    if users := old[0].users:  # they only become fewer: these models have lost their names
        await asyncio.wait(users)
    for one in old:
        await asyncio.to_thread(one.stop)
    await asyncio.to_thread(gc.collect)  # a model and its threads know each other


def check_alike(old: api.LanguageModel, new: api.LanguageModel) -> None:
    """Whether a model can take the place of another so that its answers alone tell.

    Raises:
        ModelError: It is of another family, shape or vocabulary.
    """
    if old.family != new.family or _shapes(old.model) != _shapes(new.model):
        raise ModelError(f"{new.path} is of another shape than {old.path}")
    if _words(old) != _words(new):
        raise ModelError(f"{new.path} has another vocabulary than {old.path}")


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    state = model.state_dict() if hasattr(model, "state_dict") else {}
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _words(model: api.LanguageModel) -> dict[str, int] | None:
    return None if model.tokenizer is None else model.tokenizer.backend.get_vocab()
