"""Who reads how much in the next pass of the model: a pure object, without tensors or a clock.

Requests join and leave a running batch at every step (Orca, Yu et al. 2022, section 3.1). Those
that are being answered come first, a token each and what was guessed ahead; what is left of a step
reads prompts, long ones in pieces (Sarathi, Agrawal et al. 2023, section 4), so that nobody who
listens waits for somebody else's prompt. Where pages run out, the request that came last gives its
own back and reads again later (recomputation, Kwon et al. 2023, section 4.5): the oldest always
goes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from inkstone.inference.pages import Pages


@dataclass(eq=False, slots=True)
class Request:
    """A text that grows.

    Attributes:
        ids: Prompt and answer so far, at least one token.
        adapter: What it is read with, by number; 0 for the model as it is.
        draft: Tokens that are guessed to come next, and read along with the last one.
        read: Tokens whose keys and values are in pages.
        pages: Where, in order.
        filed: How many of these pages are full and filed.
    """

    ids: list[int]
    adapter: int = 0
    draft: list[int] = field(default_factory=list)
    read: int = 0
    pages: list[int] = field(default_factory=list)
    filed: int = 0

    @property
    def unread(self) -> int:
        """Tokens to read before a next one can be chosen."""
        return len(self.ids) + len(self.draft) - self.read


@dataclass(frozen=True, slots=True)
class Part:
    """What one request reads in a step.

    Attributes:
        request: Whose.
        start: Place of the first token in the text.
        ids: The tokens.
        scored: For how many of them, from the end, what comes next is asked: none while a prompt is
            read in pieces, else the last one and the draft.
    """

    request: Request
    start: int
    ids: tuple[int, ...]
    scored: int


class Scheduler:
    """Plans steps.

    Args:
        pages: Of the cache; enough for the longest request alone.
        tokens_per_step: Read at once by all together.
        most: Requests at once.
    """

    def __init__(self, pages: Pages, *, tokens_per_step: int = 512, most: int = 64) -> None:
        assert 1 <= most <= tokens_per_step
        self.pages, self.tokens_per_step, self.most = pages, tokens_per_step, most
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # the oldest first

    def __len__(self) -> int:
        """Requests that wait or run."""
        return len(self.waiting) + len(self.running)

    def add(self, request: Request) -> None:
        """Queue a request."""
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """A request is answered, or nobody wants it any more."""
        if request in self.running:
            self.running.remove(request)
            self._give_back(request)
        else:
            self.waiting.remove(request)

    def plan(self) -> list[Part]:
        """The next step; empty where there is nothing to do."""
        parts: dict[Request, Part] = {}
        self._room = self.tokens_per_step
        for request in sorted(self.running, key=lambda r: r.unread > 1 + len(r.draft)):
            if request in self.running and self._room:  # it may have had to give way meanwhile
                self._read(request, parts)
        while self.waiting and self._room and len(self.running) < self.most:
            request = self.waiting[0]
            if not self._admit(request):
                break
            self._read(request, parts)
        return list(parts.values())

    def done(self, parts: Sequence[Part]) -> None:
        """A step was computed, and the tokens that were chosen are in `ids`: file what is full."""
        size = self.pages.page_size
        for part in parts:
            request = part.request
            if request not in self.running:
                continue  # removed since
            request.draft = []
            request.read = min(part.start + len(part.ids), len(request.ids) - 1)
            while (request.filed + 1) * size <= request.read:
                n = request.filed
                before = request.pages[n - 1] if n else None
                ids = request.ids[n * size : (n + 1) * size]
                request.pages[n] = self.pages.file(request.pages[n], before, ids, request.adapter)
                request.filed += 1

    def restart(self, pages: Pages) -> None:
        """What was in the pages is lost: all that ran waits again, in its old order."""
        self.pages = pages
        for request in reversed(self.running):
            request.read, request.pages, request.filed, request.draft = 0, [], 0, []
            self.waiting.appendleft(request)
        self.running.clear()

    def _admit(self, request: Request) -> bool:
        """Let a request in if there is room for all it has to read, and a page to go on."""
        found = self.pages.find(request.ids, request.adapter)
        missing = -(-len(request.ids) // self.pages.page_size) - len(found)
        if self.running and self.pages.available <= missing:
            self.pages.leave(found)
            return False
        self.waiting.popleft()
        self.running.append(request)
        request.pages, request.filed = found, len(found)
        request.read = len(found) * self.pages.page_size
        return True

    def _read(self, request: Request, parts: dict[Request, Part]) -> None:
        """Plan as much of a request as there is room for."""
        while request.draft and request.unread > self._room:
            request.draft.pop()
        count = min(request.unread, self._room)
        end = request.read + count
        while len(request.pages) * self.pages.page_size < end:
            page = self.pages.take()
            if page is not None:
                request.pages.append(page)
                continue
            last = self.running[-1]
            self._give_way(last, parts)
            if last is request:
                return
        text = (request.ids + request.draft)[request.read : end]
        whole = count == request.unread
        scored = 1 + len(request.draft) if whole else 0
        parts[request] = Part(request, request.read, tuple(text), scored)
        self._room -= count

    def _give_way(self, request: Request, parts: dict[Request, Part]) -> None:
        part = parts.pop(request, None)
        if part is not None:
            self._room += len(part.ids)
        self.running.remove(request)
        self._give_back(request)
        self.waiting.appendleft(request)

    def _give_back(self, request: Request) -> None:
        self.pages.leave(request.pages)
        request.read, request.pages, request.filed, request.draft = 0, [], 0, []
