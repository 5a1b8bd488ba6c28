"""vectors/cooccurrence.py: equal to counting pair by pair, whatever the memory."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from inkstone.errors import DataError
from inkstone.vectors import cooccurrence
from inkstone.vectors.vocabulary import BREAK, UNKNOWN, Rows

V, WINDOW = 12, 4


def stream(length: int = 700) -> np.ndarray:
    made = np.random.default_rng(0).integers(UNKNOWN, V, length).astype(np.int32)
    made[::57] = BREAK
    return made


def by_hand(words: np.ndarray) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = defaultdict(float)
    text: list[int] = []
    for word in [*words.tolist(), BREAK]:
        if word == BREAK:
            for i, a in enumerate(text):
                for distance, b in enumerate(text[i + 1 : i + 1 + WINDOW], 1):
                    found[a, b] += 1 / distance
                    found[b, a] += 1 / distance
            text = []
        elif word != UNKNOWN:
            text.append(word)
    return found


@pytest.mark.parametrize("block", [13, 1 << 17])
@pytest.mark.parametrize("memory", [8, 40, 1 << 20])
def test_counts_are_those_of_every_window(
    block: int, memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooccurrence, "BLOCK", block)
    pairs = cooccurrence.count(Rows(stream()), V, WINDOW, tmp_path, memory_pairs=memory)
    found = {(int(i), int(j)): float(x) for i, j, x in pairs.records}
    expected = by_hand(stream())
    assert len(found) == len(pairs) and found.keys() == expected.keys()
    for pair, x in found.items():
        assert x == pytest.approx(expected[pair], rel=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.bin"]


def test_the_order_is_random_and_the_seeds(tmp_path: Path) -> None:
    orders = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        made = cooccurrence.count(
            Rows(stream()), V, WINDOW, tmp_path / name, seed=seed, memory_pairs=30
        )
        orders.append([(int(i), int(j)) for i, j, _ in made.records])
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != sorted(orders[0])
    first = [i for i, _ in orders[0][: len(orders[0]) // 2]]
    assert set(first) == set(range(V))  # no half of the file lacks a word


@pytest.mark.parametrize("words", [[], [3], [3, BREAK, 4], [UNKNOWN, 2, UNKNOWN]])
def test_nothing_to_count(words: list[int], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no two words"):
        cooccurrence.count(Rows(np.array(words, np.int32)), V, WINDOW, tmp_path)


def test_a_file_that_was_cut_off(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no pairs"):
        cooccurrence.Pairs(tmp_path)
    (tmp_path / "pairs.bin").write_bytes(b"x" * 13)
    with pytest.raises(DataError, match="delete the folder"):
        cooccurrence.Pairs(tmp_path)
