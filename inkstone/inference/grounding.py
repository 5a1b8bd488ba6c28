"""A source to look things up in: the passages of a folder of text, ranked by BM25.

The toolset of Thoppilan et al. 2022 (section 6.2) has an information retrieval system that takes a
query and gives snippets with where they stand. Here it is the reader's own folder; nothing is
fetched. Ranking after Robertson and Zaragoza 2009 ("The Probabilistic Relevance Framework: BM25 and
Beyond", equation 3.15), with the inverse document frequency that never falls below zero:

    Σ over t:  ln(1 + (N − n + ½) / (n + ½)) · f (k₁ + 1) / (f + k₁ (1 − b + b · l / l̄))

for the terms t of the query: N passages, n of them hold t, f times here; l terms in this passage,
l̄ on average.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError
from inkstone.text.config import TextConfig
from inkstone.text.normalize import normalize
from inkstone.text.readers import read

K1, B = 1.2, 0.75
PASSAGE_WORDS = 100
MAX_PASSAGES = 1 << 20
CITED = 0.5  # of what an answer says must stand in a passage that it cites
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af"
_TERM = re.compile(rf"[{_CJK}]+|[^\W_{_CJK}]+")
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a text and where it stands.

    Attributes:
        file: Path within the folder.
        number: Of the passage in that file, from 1.
        text: Its words.
    """

    file: str
    number: int
    text: str

    @property
    def place(self) -> str:
        """For people: "rivers.txt, passage 3"."""
        return f"{self.file}, passage {self.number}"


@dataclass(frozen=True, slots=True)
class Found:
    """A passage that a query found.

    Attributes:
        passage: The passage.
        score: BM25; comparable within one query.
        support: Share of an answer that stands in it, each term by its rarity; 0 until there is
            an answer.
    """

    passage: Passage
    score: float
    support: float = 0.0


class Library:
    """Passages with an index of their terms.

    Args:
        passages: Any number, read once.

    Raises:
        DataError: There is none, or there are too many to hold.
    """

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.passages: list[Passage] = []
        held: dict[str, list[tuple[int, int]]] = {}
        lengths: list[int] = []
        for number, passage in enumerate(passages):
            if number >= MAX_PASSAGES:
                raise DataError(
                    f"more than {MAX_PASSAGES:,} passages", fix="name a smaller folder as source"
                )
            counts = Counter(terms(passage.text))
            for term, count in counts.items():
                held.setdefault(term, []).append((number, count))
            self.passages.append(passage)
            lengths.append(counts.total())
        if not self.passages:
            raise DataError("the sources hold no text", fix="name a folder with text in it")
        self._held = {term: np.array(pairs, np.int64).T for term, pairs in held.items()}
        self._length = np.array(lengths, np.float64)
        self._length /= max(1.0, float(self._length.mean()))

    @classmethod
    def open(cls, folder: Path | str, config: TextConfig | None = None) -> Library:
        """Index a folder, or one file.

        Raises:
            DataError: It cannot be read, or holds no text.
        """
        config = config or TextConfig(split_on="file")
        root = Path(folder)
        return cls(_passages(root if root.is_dir() else root.parent, root, config))

    def __len__(self) -> int:
        return len(self.passages)

    def rarity(self, term: str) -> float:
        """Inverse document frequency of a term, in nats."""
        n = self._held[term].shape[1] if term in self._held else 0
        return math.log1p((len(self.passages) - n + 0.5) / (n + 0.5))

    def search(self, query: str, top: int = 3) -> list[Found]:
        """The best passages, best first; those that share no term with the query are left out.

        Args:
            query: Words, in any order.
            top: How many at most.
        """
        scores: npt.NDArray[np.float64] = np.zeros(len(self.passages))
        for term, times in sorted(Counter(terms(query)).items()):
            if term in self._held:
                numbers, f = self._held[term]
                slowed = f + K1 * (1 - B + B * self._length[numbers])
                scores[numbers] += times * self.rarity(term) * f * (K1 + 1) / slowed
        order = np.argsort(-scores, kind="stable")[:top]
        return [Found(self.passages[i], float(scores[i])) for i in order if scores[i] > 0]

    def support(self, answer: str, passage: Passage) -> float:
        """Share of an answer's terms that stand in a passage, each counting by its rarity."""
        said, there = set(terms(answer)), set(terms(passage.text))
        weight = {term: self.rarity(term) for term in said}
        return sum(weight[t] for t in sorted(said & there)) / max(1e-9, sum(weight.values()))


def terms(text: str) -> list[str]:
    """Words in lower case; of scripts without spaces, overlapping pairs of characters."""
    found: list[str] = []
    for term in _TERM.findall(normalize(text).casefold()):
        if re.match(f"[{_CJK}]", term) and len(term) > 1:
            found += [term[i : i + 2] for i in range(len(term) - 1)]
        else:
            found.append(term)
    return found


def _passages(root: Path, source: Path, config: TextConfig) -> Iterator[Passage]:
    numbers: Counter[str] = Counter()
    for document in read(source, config=config):
        file = document.source.removeprefix(f"{root}/")
        for text in cut(document.text):
            numbers[file] += 1
            yield Passage(file, numbers[file], text)


def cut(text: str) -> Iterator[str]:
    """Passages of about a hundred words: paragraphs, short ones together, long ones by sentence."""
    held: list[str] = []
    size = 0
    for paragraph in re.split(r"\n\s*\n", normalize(text)):
        if held and size >= PASSAGE_WORDS // 2:
            yield " ".join(held)
            held, size = [], 0
        for sentence in _sentences(paragraph):
            words = len(terms(sentence))
            if held and size + words > PASSAGE_WORDS:
                yield " ".join(held)
                held, size = [], 0
            held.append(sentence)
            size += words
    if held:
        yield " ".join(held)


def _sentences(paragraph: str) -> Iterator[str]:
    """Sentences without the space around them; one that is endless is cut between words."""
    for sentence in _SENTENCE.split(paragraph):
        words = sentence.split()
        for start in range(0, len(words), PASSAGE_WORDS):
            yield " ".join(words[start : start + PASSAGE_WORDS])
