"""When an answer is right: the words of two answers, compared as SQuAD's own script does.

Rajpurkar et al. 2016, section 6.1: case, ASCII punctuation and the articles a, an, the do not
count; F1 is that of the two bags of words, and of several right answers the best counts. Of scripts
without spaces every character is a word, and their marks do not count either (as Shao et al. 2018
and Cui et al. 2019 score Chinese).
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_MARKS = re.compile(f"[{re.escape(string.punctuation)}]")
_WIDE_MARKS = re.compile("[、。〈〉《》「」『』【】〔〕·…—～！（），：；？]")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_CHARACTER = re.compile("([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")


def answer_words(text: str) -> list[str]:
    """The words of an answer that count."""
    text = _ARTICLES.sub(" ", _MARKS.sub("", text.lower()))
    return _CHARACTER.sub(r" \1 ", _WIDE_MARKS.sub("", text)).split()


def is_exact(found: str, answers: Sequence[str]) -> bool:
    """Whether an answer has the words of one that is right; "" is right where there is none."""
    words = answer_words(found)
    return any(words == answer_words(answer) for answer in answers or ("",))


def overlap(found: str, answers: Sequence[str]) -> float:
    """F1 of the words of an answer and of the right one that is nearest, from 0 to 1."""
    return max(_f1(answer_words(found), answer_words(answer)) for answer in answers or ("",))


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    common = (Counter(found) & Counter(right)).total()
    return 2 * common / (len(found) + len(right))
