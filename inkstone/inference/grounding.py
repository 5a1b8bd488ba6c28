"""A source to look things up in: the passages of a folder of text, ranked by BM25.

The toolset of Thoppilan et al. 2022 (section 6.2) has an information retrieval system that takes a
query and gives snippets with where they stand. Here it is the reader's own folder; nothing is
fetched.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from inkstone.errors import DataError
from inkstone.text.bm25 import BM25, terms
from inkstone.text.config import TextConfig
from inkstone.text.normalize import normalize
from inkstone.text.passages import spans
from inkstone.text.readers import read

MAX_PASSAGES = 1 << 20
CITED = 0.5  # of what an answer says must stand in a passage that it cites


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
        self.passages = list(islice(passages, MAX_PASSAGES + 1))
        if len(self.passages) > MAX_PASSAGES:
            raise DataError(
                f"more than {MAX_PASSAGES:,} passages", fix="name a smaller folder as source"
            )
        if not self.passages:
            raise DataError("the sources hold no text", fix="name a folder with text in it")
        self._counts = BM25.of(passage.text for passage in self.passages)

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
        return self._counts.rarity(term)

    def search(self, query: str, top: int = 3) -> list[Found]:
        """The best passages, best first; those that share no term with the query are left out.

        Args:
            query: Words, in any order.
            top: How many at most.
        """
        scores = self._counts.scores(query)
        order = np.argsort(-scores, kind="stable")[:top]
        return [Found(self.passages[i], float(scores[i])) for i in order if scores[i] > 0]

    def support(self, answer: str, passage: Passage) -> float:
        """Share of an answer's terms that stand in a passage, each counting by its rarity."""
        said, there = set(terms(answer)), set(terms(passage.text))
        weight = {term: self.rarity(term) for term in said}
        return sum(weight[t] for t in sorted(said & there)) / max(1e-9, sum(weight.values()))


def _passages(root: Path, source: Path, config: TextConfig) -> Iterator[Passage]:
    numbers: Counter[str] = Counter()
    for document in read(source, config=config):
        file = document.source.removeprefix(f"{root}/")
        for text in cut(document.text):
            numbers[file] += 1
            yield Passage(file, numbers[file], text)


def cut(text: str) -> Iterator[str]:
    """Passages of about a hundred words, each on one line."""
    text = normalize(text)
    return (" ".join(text[start:end].split()) for start, end in spans(text))
