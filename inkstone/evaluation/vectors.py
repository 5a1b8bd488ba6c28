"""How good word vectors are: analogies, and agreement with people about similarity.

Analogies (Mikolov et al. 2013a, section 4): "a b c d" asks for d, given a, b and c; the answer is
the nearest word to b − a + c that is none of the three. Similarity: Spearman's rank correlation
between people's scores of word pairs and cosines. Rules as in Gensim: words are compared without
case, what is asked means the most frequent spelling, any spelling answers, and questions with an
unknown word are left out.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.errors import DataError
from inkstone.vectors.table import Method, Vectors

MAX_BYTES = 1 << 26
RESTRICT = 300_000  # answers come from the most frequent words, as in Gensim
QUESTIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Analogies:
    """Result of a file of analogies.

    Attributes:
        accuracy: Share of the answered questions that are right, 0 to 1; NaN if there are none.
        correct: How many are right.
        asked: How many were answered.
        skipped: Questions with a word that has no vector.
        sections: The same by section: {"family": (correct, asked)}.
        rule: How it was measured.
    """

    accuracy: float
    correct: int
    asked: int
    skipped: int
    sections: dict[str, tuple[int, int]]
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"kind": "analogies"}


@dataclass(frozen=True)
class Similarity:
    """Result of a file of word pairs.

    Attributes:
        spearman: Rank correlation, −1 to 1; NaN with fewer than two pairs.
        pairs: How many were compared.
        skipped: Pairs with a word that has no vector.
        rule: How it was measured.
    """

    spearman: float
    pairs: int
    skipped: int
    rule: str = field(default="Spearman's rho of cosines; pairs with unknown words left out")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self) | {"kind": "similarity"}


def evaluate(vectors: Vectors, path: Path | str, *, method: Method = "add") -> Any:
    """`analogies` or `similarity`, after what the file holds.

    Raises:
        DataError: It is neither.
    """
    lines = _lines(Path(path))
    first = next((line for line in lines if line.strip()), "")
    if first.startswith(":") or len(first.split()) == 4:
        return analogies(vectors, path, method=method)
    return similarity(vectors, path)


def analogies(
    vectors: Vectors,
    path: Path | str,
    *,
    method: Method = "add",
    restrict: int | None = RESTRICT,
) -> Analogies:
    """Answer a file in the format of questions-words.txt.

    Args:
        vectors: What is measured.
        path: Lines of four words, and lines ": name" that begin a section.
        method: As in `Vectors.most_similar`.
        restrict: Look for answers, and know words, only among so many of the first.

    Raises:
        DataError: The file is not of that form; names the line.
    """
    row = _folded(vectors, restrict)
    section, skipped = "", 0
    sections: dict[str, list[int]] = {}
    questions: list[list[int | None]] = []
    for number, line in enumerate(_lines(Path(path)), 1):
        if line.startswith(":"):
            section = line[1:].strip()
            continue
        words = line.split()
        if not words:
            continue
        if len(words) != 4:
            raise DataError(f"{path}:{number}: {len(words)} words instead of four")
        found = [row.get(_fold(w)) for w in words]
        if None in found:
            skipped += 1
            continue
        sections.setdefault(section, []).append(len(questions))
        questions.append(found)
    right = _answered(vectors, np.array(questions, np.int64).reshape(-1, 4), row, method, restrict)
    asked, correct = len(questions), int(right.sum())
    limit = f"{restrict:,}" if restrict is not None else "all"
    return Analogies(
        accuracy=correct / asked if asked else float("nan"),
        correct=correct,
        asked=asked,
        skipped=skipped,
        sections={k: (int(right[v].sum()), len(v)) for k, v in sections.items()},
        rule=f"3Cos{method.capitalize()}, without case, answers among the first {limit} words",
    )


def similarity(vectors: Vectors, path: Path | str) -> Similarity:
    """Compare with a file of lines "word, word, score" with tabs between them.

    A first line without a number is taken for names of columns. Lines that begin with # are
    comments.

    Raises:
        DataError: The file is not of that form; names the line.
    """
    row = _folded(vectors, None)
    people, cosines, skipped = list[float](), list[float](), 0
    for number, line in enumerate(_lines(Path(path)), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.rstrip("\n").split("\t" if "\t" in line else None)
        try:
            a, b, score = fields[0], fields[1], float(fields[2])
        except (IndexError, ValueError) as error:
            if number == 1 and len(fields) >= 3:
                continue
            raise DataError(
                f"{path}:{number}: not a pair of words and a score",
                fix="analogies are four words a line; pairs are word, tab, word, tab, number",
            ) from error
        found = row.get(_fold(a)), row.get(_fold(b))
        if found[0] is None or found[1] is None:
            skipped += 1
            continue
        people.append(score)
        cosines.append(float(vectors.unit[found[0]] @ vectors.unit[found[1]]))
    return Similarity(spearman(np.array(people), np.array(cosines)), len(people), skipped)


def spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Correlation of ranks, equal values sharing the mean of theirs; NaN where undefined."""
    a, b = (_ranks(v) - (len(v) + 1) / 2 for v in (x, y))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float("nan")


def _ranks(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    last: npt.NDArray[np.float64] = np.cumsum(counts) - (counts - 1) / 2
    return last[inverse]


def _answered(
    vectors: Vectors,
    questions: npt.NDArray[np.int64],
    row: dict[str, int],
    method: Method,
    restrict: int | None,
) -> npt.NDArray[np.bool_]:
    """[Q] whether the nearest word that is not asked with is the right one."""
    right = np.zeros(len(questions), np.bool_)
    first = np.array([row[_fold(word)] for word in vectors.words[:restrict]], np.int64)
    rarer = np.flatnonzero(first != np.arange(len(first)))  # other spellings of a word
    for start in range(0, len(questions), QUESTIONS_AT_ONCE):
        a, b, c, d = questions[start : start + QUESTIONS_AT_ONCE].T
        unit = vectors.unit
        scores = vectors.scores(
            np.stack([unit[b], unit[c]], axis=1), unit[a][:, None], method=method, restrict=restrict
        )
        every = np.arange(len(a))
        for given in (a, b, c):
            scores[every, given] = -np.inf
            scores[:, rarer] = np.where(first[rarer] == given[:, None], -np.inf, scores[:, rarer])
        right[start : start + len(a)] = first[scores.argmax(axis=1)] == d
    return right


def _folded(vectors: Vectors, restrict: int | None) -> dict[str, int]:
    """Row of every word without case; of several spellings the first."""
    row: dict[str, int] = {}
    for number, word in enumerate(vectors.words[:restrict]):
        row.setdefault(_fold(word), number)
    return row


def _fold(word: str) -> str:
    return word.upper()  # as Gensim does: "ß" meets "ss"


def _lines(path: Path) -> list[str]:
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES} bytes")
        return raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
