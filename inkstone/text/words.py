"""From running text to words with spaces between them: splitting, lower case, phrases.

Vectors of words want words: "House," and "house" are one, 北京大学在哪里 is three. Phrases join
words that stand together more often than chance, so that "new_york" gets a vector of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pydantic import Field

from inkstone.config import Progress, Section
from inkstone.text import segment
from inkstone.text.document import Document
from inkstone.text.store import DocumentStore, write_store

WORD = re.compile(r"\w+(?:['’\-]\w+)*")
MAX_PAIRS = 1 << 23  # distinct pairs counted at a time; the rarest are forgotten beyond that
PROGRESS_DOCUMENTS = 100


class WordsConfig(Section):
    """How documents become words.

    Attributes:
        split: "none" leaves documents as they are. "letters" keeps runs of letters and digits,
            with inner hyphens and apostrophes. "jieba" finds the words of Chinese text (extra
            `zh`) and keeps those that hold a letter or digit.
        lowercase: Fold case.
        phrases: Passes that join two words each (Mikolov et al. 2013b, section 4); 0 joins none.
        phrase_min_count: δ of equation 6: how often two words must stand together, and more.
        phrase_threshold: The score from which they are joined; halved with each pass.
    """

    split: Literal["none", "letters", "jieba"] = "none"
    lowercase: bool = False
    phrases: int = Field(default=0, ge=0, le=8)
    phrase_min_count: int = Field(default=5, ge=1)
    phrase_threshold: float = Field(default=100.0, ge=0)

    @property
    def active(self) -> bool:
        """Whether anything is to be done."""
        return self.split != "none" or self.lowercase or self.phrases > 0


class Phrases:
    """Which neighbours are one phrase.

    Mikolov et al. 2013b, equation 6, times the number of words N, as in the released word2phrase:

        score(a, b) = (count(a b) − δ) · N / (count(a) · count(b))

    Args:
        texts: Lists of words; read once.
        min_count: δ; rarer words and pairs are never joined.
        threshold: The score from which a pair is joined.
        joiner: Stands between the two.
        max_pairs: Distinct pairs counted at a time, to bound memory; the rarest are forgotten.
    """

    def __init__(
        self,
        texts: Iterable[list[str]],
        *,
        min_count: int = 5,
        threshold: float = 100.0,
        joiner: str = "_",
        max_pairs: int = MAX_PAIRS,
    ) -> None:
        words: Counter[str] = Counter()
        pairs: Counter[tuple[str, str]] = Counter()
        forgotten = 0
        for text in texts:
            words.update(text)
            pairs.update(pairwise(text))
            while len(pairs) > max_pairs:
                forgotten += 1
                pairs = Counter({p: n for p, n in pairs.items() if n > forgotten})
        total = words.total()
        self.joiner = joiner
        self.scores = {
            (a, b): score
            for (a, b), n in pairs.items()
            if n >= min_count and words[a] >= min_count and words[b] >= min_count
            and (score := (n - min_count) * total / (words[a] * words[b])) > threshold
        }  # fmt: skip

    def __call__(self, text: list[str]) -> list[str]:
        """The text with its phrases joined, from left to right."""
        out, i = [], 0
        while i < len(text):
            if i + 1 < len(text) and (text[i], text[i + 1]) in self.scores:
                out.append(text[i] + self.joiner + text[i + 1])
                i += 2
            else:
                out.append(text[i])
                i += 1
        return out


def splitter(config: WordsConfig) -> Callable[[str], list[str]]:
    """What turns a text into its words.

    Raises:
        MissingExtraError: "jieba" is asked for and not installed.
    """
    cut: Callable[[str], list[str]] = str.split
    if config.split == "letters":
        cut = WORD.findall
    elif config.split == "jieba":
        segment.words("", "jieba")  # that it is not installed is said here
        cut = _chinese
    if config.lowercase:
        return lambda text: cut(text.lower())
    return cut


def write_words(
    source: Path, out: Path, config: WordsConfig, *, progress: Progress | None = None
) -> str:
    """Write the words of `source`/train and `source`/valid to `out`, as stores of documents.

    Phrases are learned from the training documents alone.

    Returns:
        One line about what was found.
    """
    cut, learned = splitter(config), list[Phrases]()

    def words(part: str, told: Progress | None = None) -> Iterator[tuple[Document, list[str]]]:
        store = DocumentStore(source / part)
        for number in range(len(store)):
            document = store.document(number)
            text = cut(document.text)
            for phrases in learned:
                text = phrases(text)
            yield document, text
            if told is not None and number % PROGRESS_DOCUMENTS == 0:
                told(number, len(store), "documents")

    for number in range(config.phrases):
        learned.append(
            Phrases(
                (text for _, text in words("train", progress)),
                min_count=config.phrase_min_count,
                threshold=config.phrase_threshold / 2**number,
            )
        )
    for part in ("train", "valid"):
        made = write_store(
            out / part,
            (
                Document(" ".join(text), document.source, document.index)
                for document, text in words(part, progress)
            ),
        )
        if part == "train":
            size = made.n_bytes
    joined = sum(len(phrases.scores) for phrases in learned)
    return f"{size:,} bytes of words" + (f", {joined:,} phrases" if learned else "")


def _chinese(text: str) -> list[str]:
    return [w for w in segment.words(text, "jieba") if any(c.isalnum() for c in w)]
