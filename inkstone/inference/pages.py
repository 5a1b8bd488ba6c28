"""Which page of the cache holds what: memory in pieces, and equal beginnings kept once.

Keys and values live in pages of a few tokens (PagedAttention, Kwon et al. 2023, section 4.1). A
full page is filed under its tokens and the page before it, so that a later text which begins alike
finds it (section 4.4, and RadixAttention, Zheng et al. 2024, section 3). Keys and values depend on
who computed them, so texts that are read with different adapters share no page, however alike they
begin: each adapter has a root of its own. A page that nobody reads any more stays until its room is
needed; the one that was left longest ago goes first. Only numbers are kept here: what is in the
pages is the cache's affair (`nn/paged.py`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = 0  # what comes before the first page; that of adapter n is −n, and pages count from 1


@dataclass(slots=True)
class _Page:
    readers: int = 0
    name: int = 0  # by which the next page is filed; 0 while this one is not filed itself
    key: tuple[int, tuple[int, ...]] | None = None


class Pages:
    """Pages of one cache, by number.

    Args:
        n_pages: How many there are.
        page_size: Tokens of a page.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.n_pages, self.page_size = n_pages, page_size
        self._pages = [_Page() for _ in range(n_pages)]
        self._free = list(range(n_pages - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # filed, without a reader
        self._filed: dict[tuple[int, tuple[int, ...]], int] = {}
        self._names = ROOT

    @property
    def available(self) -> int:
        """Pages that `take` could give."""
        return len(self._free) + len(self._idle)

    def find(self, ids: Sequence[int], adapter: int = 0) -> list[int]:
        """Pages that hold the beginning of a text, now read by one more.

        The last token is left out: its scores are still wanted.

        Args:
            ids: The text.
            adapter: What it is read with; 0 for none.
        """
        found: list[int] = []
        name, size = ROOT - adapter, self.page_size
        for start in range(0, len(ids) - size, size):
            number = self._filed.get((name, tuple(ids[start : start + size])))
            if number is None:
                break
            self._read(number)
            found.append(number)
            name = self._pages[number].name
        return found

    def take(self) -> int | None:
        """An empty page with one reader; None where every page is being read."""
        if self._free:
            number = self._free.pop()
        elif self._idle:
            number, _ = self._idle.popitem(last=False)
            page = self._pages[number]
            assert page.key is not None
            del self._filed[page.key]
            page.key, page.name = None, 0
        else:
            return None
        self._pages[number].readers = 1
        return number

    def file(self, number: int, before: int | None, ids: Sequence[int], adapter: int = 0) -> int:
        """A page is full: file it under its tokens, behind the page `before`.

        Args:
            number: The page.
            before: The one ahead of it in the text; None where it is the first.
            ids: Its tokens.
            adapter: As in `find`.

        Returns:
            The page to read from now on: this one, or, where another with the same beginning was
            filed first, that one, and this one is given back.
        """
        page = self._pages[number]
        assert page.key is None and page.readers == 1 and len(ids) == self.page_size
        name = ROOT - adapter if before is None else self._pages[before].name
        key = (name, tuple(ids))
        other = self._filed.get(key)
        if other is not None:
            self._read(other)
            self.leave([number])
            return other
        self._names += 1
        page.key, page.name = key, self._names
        self._filed[key] = number
        return number

    def leave(self, numbers: Sequence[int]) -> None:
        """One reader fewer of each; the end of a text is forgotten before its beginning."""
        for number in reversed(numbers):
            page = self._pages[number]
            assert page.readers > 0
            page.readers -= 1
            if not page.readers:
                if page.key is None:
                    self._free.append(number)
                else:
                    self._idle[number] = None

    def _read(self, number: int) -> None:
        self._pages[number].readers += 1
        self._idle.pop(number, None)
