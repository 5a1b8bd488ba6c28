"""BM25 equals a slow loop over its formula; passages stand where they say."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inkstone.text.bm25 import BM25, K1, B, terms
from inkstone.text.passages import spans

TEXTS = ["The river Ae is green.", "green green lake", "", "河水是绿的", "a lake, a river, a lake"]
WRITTEN = st.text(alphabet="ab .!?。\n\r\t河水é", max_size=300)


@pytest.mark.parametrize("query", ["green river", "lake lake", "河水", "nothing", ""])
def test_scores_equal_a_loop(query: str) -> None:
    held = [Counter(terms(text)) for text in TEXTS]
    mean = sum(c.total() for c in held) / len(held)
    wanted = []
    for counts in held:
        score = 0.0
        for t in terms(query):
            n, f = sum(t in c for c in held), counts[t]
            idf = math.log(1 + (len(held) - n + 0.5) / (n + 0.5))
            score += idf * f * (K1 + 1) / (f + K1 * (1 - B + B * counts.total() / mean))
        wanted.append(score)
    np.testing.assert_allclose(BM25.of(TEXTS).scores(query), wanted, atol=1e-12)


def test_nothing_at_all() -> None:
    assert len(BM25.of([])) == 0 and BM25.of([]).scores("x").tolist() == []
    assert BM25.of(["", ""]).scores("x").tolist() == [0.0, 0.0]


@given(WRITTEN, st.integers(1, 8))
def test_passages_hold_every_word_once_and_in_order(text: str, words: int) -> None:
    found = list(spans(text, words))
    assert all(a < b for a, b in found)
    assert all(b <= c for (_, b), (c, _) in pairwise(found))
    pieces = [text[a:b] for a, b in found]
    assert all(piece == piece.strip() for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    single = all(len(terms(word)) <= 1 for word in text.split())
    assert not single or all(len(terms(piece)) <= words for piece in pieces)


def test_paragraphs_stay_together_where_they_fit() -> None:
    text = "One two three four.\r\n\r\nFive six. Seven eight nine.\n \n" + "ten " * 12
    found = [text[a:b] for a, b in spans(text, 6)]
    assert found == [
        "One two three four.", "Five six. Seven eight nine.", *["ten ten ten ten ten ten"] * 2,
    ]  # fmt: skip
    assert len(list(spans("a b.\n\nc d.\n\ne f.", 100))) == 1
