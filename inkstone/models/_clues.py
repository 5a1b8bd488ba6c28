"""What a tagger sees of a word: itself, its neighbours, its ends and its shape.

The clues are those of Ratnaparkhi (1996, table 1), with words two to either side, pairs of them and
shapes (Sha & Pereira 2003, section 4; Finkel et al. 2005). Written language with letters gives them
all; a Chinese character has its neighbours, and the word that a segmenter takes it to be of (as in
Peng & Dredze 2016).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

from inkstone.text import segment

BEFORE, AFTER = ("⟨2", "⟨1"), ("1⟩", "2⟩")
REPEATED = re.compile(r"(.)\1+")


def shape(word: str) -> str:
    """Capitals, small letters and digits told apart, other characters as they are."""
    return "".join(
        "A" if c.isupper() else "a" if c.islower() else "0" if c.isdigit() else c for c in word
    )


def clues(words: Sequence[str], given: Sequence[str] | None = None) -> list[list[str]]:
    """The clues of each word of a sentence, each clue once a word.

    Args:
        words: T words.
        given: T marks that are known beforehand, such as parts of speech.
    """
    plain = [*BEFORE, *words, *AFTER]
    w = [word.lower() for word in plain]
    form = [REPEATED.sub(r"\1", shape(word)) for word in plain]
    found = []
    for i in range(2, len(w) - 2):
        before, word, after = w[i - 1], w[i], w[i + 1]
        has_digit, has_hyphen = any(map(str.isdigit, word)), "-" in word
        found.append([
            "any", f"word {plain[i]}", f"0 {word}", f"-1 {before}", f"+1 {after}",
            f"-2 {w[i - 2]}", f"+2 {w[i + 2]}", f"-1,0 {before} {word}", f"0,+1 {word} {after}",
            f"-1,+1 {before} {after}", f"-2,-1 {w[i - 2]} {before}", f"+1,+2 {after} {w[i + 2]}",
            *(f"begins {word[:n]}" for n in range(1, min(4, len(word)) + 1)),
            *(f"ends {word[-n:]}" for n in range(1, min(5, len(word)) + 1)),
            f"-1 ends {before[-3:]}", f"+1 ends {after[-3:]}",
            f"-1,0 end {before[-2:]} {word[-2:]}", f"0,+1 end {word[-2:]} {after[-2:]}",
            f"letters {shape(plain[i])}", f"shape {form[i]}", f"-1 shape {form[i - 1]}",
            f"+1 shape {form[i + 1]}", f"shapes {form[i - 1]} {form[i]} {form[i + 1]}",
            f"kind {has_digit:d}{has_hyphen:d}{plain[i].isupper():d}{i == 2:d}",
        ])  # fmt: skip
    if given is not None:
        m = [*BEFORE, *given, *AFTER]
        for i, some in enumerate(found, 2):
            some += [
                f"mark 0 {m[i]}", f"mark -1 {m[i - 1]}", f"mark +1 {m[i + 1]}",
                f"mark -2 {m[i - 2]}", f"mark +2 {m[i + 2]}", f"mark -1,0 {m[i - 1]} {m[i]}",
                f"mark 0,+1 {m[i]} {m[i + 1]}", f"mark -2,-1 {m[i - 2]} {m[i - 1]}",
                f"mark +1,+2 {m[i + 1]} {m[i + 2]}", f"mark -1..+1 {m[i - 1]} {m[i]} {m[i + 1]}",
                f"mark -2..0 {m[i - 2]} {m[i - 1]} {m[i]}",
                f"mark 0..+2 {m[i]} {m[i + 1]} {m[i + 2]}",
            ]  # fmt: skip
    return found


def word_clues(tokens: Sequence[str]) -> list[list[str]]:
    """Of each token, the word that its first character is of, and where in it: B, I, E, S alone.

    Args:
        tokens: Of a sentence in which spaces do not tell words apart.

    Raises:
        MissingExtraError: jieba is not installed.
    """
    text = re.sub(r"\s", "_", "".join(tokens))
    places: list[str] = []
    words: list[str] = []
    for word in segment.words(text, "jieba"):
        places += ["S"] if len(word) == 1 else ["B", *"I" * (len(word) - 2), "E"]
        words += [word] * len(word)
    starts = [0, *accumulate(map(len, tokens))][:-1]
    of = [(places[i], words[i]) if i < len(words) else ("S", "") for i in starts]
    around = ["⟨", *(place for place, _ in of), "⟩"]
    return [
        [f"in {place}", f"in {place} {word}", f"places {''.join(around[i : i + 3])}"]
        for i, (place, word) in enumerate(of)
    ]
