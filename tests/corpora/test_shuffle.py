"""The permutation is one, and it is the same everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.corpora.shuffle import Permutation


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    out = Permutation(n, seed, epoch)(np.arange(n))
    assert sorted(out.tolist()) == list(range(n))


def test_is_the_same_on_every_machine() -> None:
    assert Permutation(1000, 7, 3)(np.arange(6)).tolist() == [836, 114, 24, 880, 481, 749]


def test_epochs_differ_and_look_random() -> None:
    n = 20_000
    first, second = (Permutation(n, 1, e)(np.arange(n)) for e in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(np.arange(n), first)[0, 1]) < 0.03


def test_huge_ranges_need_no_memory() -> None:
    n = 2**60 + 12345
    out = Permutation(n, 5)(np.arange(1000))
    assert len(set(out.tolist())) == 1000 and out.min() >= 0 and out.max() < n
