"""SentencePiece's normalisation table: which characters are replaced by which, longest match first.

The bytes are the size of a double-array trie (little endian), the trie (Yata et al., darts-clone)
and the replacements, each ended by a NUL; a key's value is the place of its replacement. The rules
are taken out once, under checks, because no code that walks the trie later checks its bounds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

MAX_BYTES = 1 << 24
MAX_KEY_BYTES = 64
MAX_NODES = 1 << 20
_LEAF = 1 << 31


class Charsmap:
    """Replaces characters by the rules of a table.

    Args:
        rules: What is replaced, by what.
    """

    def __init__(self, rules: dict[str, str]) -> None:
        self.rules = rules
        self._longest = max(map(len, rules), default=0)
        single = _one_of({key for key in rules if len(key) == 1})
        later = _one_of({c for key in rules for c in key[1:]})
        # no rule begins outside of these stretches, and none that begins inside goes beyond
        self._stretch = re.compile(f"(?s:{single}{later}*|.{later}+)") if rules else None

    def __call__(self, text: str) -> str:
        """The text with every rule applied, from left to right."""
        return text if self._stretch is None else self._stretch.sub(self._replace, text)

    def _replace(self, match: re.Match[str]) -> str:
        chunk = match.group()
        out, place = [], 0
        while place < len(chunk):
            for size in range(min(self._longest, len(chunk) - place), 0, -1):
                new = self.rules.get(chunk[place : place + size])
                if new is not None:
                    out.append(new)
                    place += size
                    break
            else:
                out.append(chunk[place])
                place += 1
        return "".join(out)


@functools.lru_cache(maxsize=8)
def read(table: bytes) -> Charsmap:
    """The rules of a table.

    Raises:
        ValueError: The table is damaged: a place outside, a loop, or bytes that are no text.
    """
    size = int.from_bytes(table[:4], "little")
    if len(table) > MAX_BYTES or size % 1024 or not 1024 <= size <= len(table) - 4:
        raise ValueError(f"a normalisation table of {len(table)} bytes claims a trie of {size}")
    units = np.frombuffer(table, "<u4", size // 4, 4).astype(np.int64)
    blob = table[4 + size :]
    return Charsmap({key.decode(): _text(blob, place) for key, place in _keys(units)})


def _keys(units: npt.NDArray[np.int64]) -> Iterator[tuple[bytes, int]]:
    """Every key of the trie and its value, level by level; branches may share their ends."""
    letters = np.arange(1, 256)
    known: dict[int, tuple[bytes, list[int]]] = {}

    def below(node: int) -> tuple[bytes, list[int]]:
        """The letters that go on from a node, and where they lead."""
        if node not in known:
            base = node ^ _offset(int(units[node]))
            if base | 0xFF >= len(units):
                raise ValueError("the trie of a normalisation table points outside of itself")
            places = base ^ letters
            places = places[(units[places] & (_LEAF | 0xFF)) == letters]
            known[node] = bytes((places ^ base).tolist()), places.tolist()
        return known[node]

    level, visited = [(b"", 0)], 0
    for _ in range(MAX_KEY_BYTES):
        if not level:
            return
        level = [
            (name + name_end.to_bytes(), place)
            for name, node in level
            for name_end, place in zip(*below(node), strict=True)
        ]
        visited += len(level)
        if visited > MAX_NODES:
            break
        for name, node in level:
            unit = int(units[node])
            if unit >> 8 & 1:
                yield name, int(units[(node ^ _offset(unit)) % len(units)]) & (_LEAF - 1)
    raise ValueError("the trie of a normalisation table has no end")


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & (1 << 9)) >> 6)


def _text(blob: bytes, place: int) -> str:
    end = blob.find(b"\0", place)
    if place >= len(blob) or end < 0:
        raise ValueError("a replacement of a normalisation table lies outside of it")
    return blob[place:end].decode()


def _one_of(characters: set[str]) -> str:
    """A character class; one that nothing matches where there are no characters."""
    return f"[{''.join(map(re.escape, sorted(characters)))}]" if characters else r"[^\s\S]"
