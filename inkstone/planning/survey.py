"""What a glance at texts shows: how long they are, in which scripts, how many stand twice."""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

SPACELESS = frozenset({"Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar"})
SPACELESS_SHARE = 0.3  # of the letters: then words are not set apart by spaces
SPACELESS_LANGUAGES = frozenset({"zh", "yue", "ja", "th", "lo", "km", "my"})
SHOWN_SHARE = 0.01  # a script with fewer of the letters is not named
NAMES = {"Cjk": "Han", "Fullwidth": "Latin"}


@dataclass(frozen=True)
class TextFacts:
    """Of a sample of texts.

    Attributes:
        texts: How many were looked at.
        median_characters: Of a text.
        long_characters: 95 % of the texts have no more.
        longest_characters: Of the longest.
        median_words: Of a text, as spaces tell them apart.
        scripts: Share of the letters by script, most frequent first.
    """

    texts: int
    median_characters: int
    long_characters: int
    longest_characters: int
    median_words: int
    scripts: dict[str, float]

    @property
    def spaceless(self) -> bool:
        """Whether words are not set apart by spaces, as in Chinese."""
        return sum(self.scripts.get(name, 0.0) for name in SPACELESS) >= SPACELESS_SHARE

    def line(self) -> str:
        """For people."""
        shown = [f"{name} {share:.0%}" for name, share in self.scripts.items()]
        return (
            f"{self.median_characters:,} characters in the middle, {self.long_characters:,} at the "
            f"95th percentile, {self.longest_characters:,} at most; {', '.join(shown) or 'no'} "
            "letters"
        )


def survey(texts: Iterable[str]) -> TextFacts:
    """Look at some texts."""
    lengths: list[int] = []
    words: list[int] = []
    characters: Counter[str] = Counter()
    for text in texts:
        lengths.append(len(text))
        words.append(len(text.split()))
        characters.update(text)
    if not lengths:
        return TextFacts(0, 0, 0, 0, 0, {})
    middle, long = np.percentile(lengths, [50, 95])
    return TextFacts(
        len(lengths), round(middle), round(long), max(lengths), round(float(np.median(words))),
        scripts(characters),
    )  # fmt: skip


def scripts(characters: Counter[str]) -> dict[str, float]:
    """Share of the letters by script: the first word of their Unicode names."""
    found: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            name = unicodedata.name(character, "unknown").split()[0].capitalize()
            found[NAMES.get(name, name)] += count
    total = sum(found.values())
    shares = {name: count / total for name, count in found.most_common()}
    return {name: share for name, share in shares.items() if share >= SHOWN_SHARE}


@dataclass(frozen=True)
class Repeats:
    """Examples that stand more than once.

    Attributes:
        copies: Examples whose text came before.
        contradictions: Further answers to texts that have one already.
    """

    copies: int
    contradictions: int


def repeats(pairs: Iterable[tuple[str, str]]) -> Repeats:
    """Count (text, answer) pairs whose text stands more than once; 16 bytes of memory a pair."""
    texts, wholes = array("Q"), array("Q")
    for text, answer in pairs:
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8)
        texts.append(int.from_bytes(digest.digest(), "little"))
        digest.update(b"\0" + answer.encode("utf-8", "surrogatepass"))
        wholes.append(int.from_bytes(digest.digest(), "little"))
    different = len(np.unique(np.frombuffer(texts, np.uint64)))
    answered = len(np.unique(np.frombuffer(wholes, np.uint64)))
    return Repeats(len(texts) - different, answered - different)
