"""vectors/vocabulary.py: sampling tables and the Huffman tree."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from inkstone.errors import ModelError
from inkstone.vectors.vocabulary import BREAK, UNKNOWN, Vocabulary, choose, from_texts

gensim_models = pytest.importorskip("gensim.models")


def zipf(size: int) -> Vocabulary:
    return Vocabulary(
        tuple(f"w{i}" for i in range(size)), np.maximum(1, 90_000 // np.arange(1, size + 1))
    )


@pytest.mark.parametrize("size", [1, 2, 3, 500])
@pytest.mark.parametrize("power", [0.0, 0.75, 1.0])
def test_noise_has_the_distribution_that_was_asked_for(size: int, power: float) -> None:
    vocabulary = zipf(size)
    table = vocabulary.noise(power)
    own, other = (table >> np.uint64(32)) / 2**32, (table & np.uint64(2**32 - 1)).astype(int)
    share = own + np.bincount(other, weights=1 - own, minlength=size)
    wanted = vocabulary.counts**power
    np.testing.assert_allclose(share / size, wanted / wanted.sum(), atol=1e-8)


def test_frequent_words_are_thinned_as_in_gensim() -> None:
    counts = {"a": 9000, "b": 700, "c": 30, "d": 5}
    model = gensim_models.Word2Vec(min_count=1, sample=0.01)
    model.build_vocab_from_freq(counts)
    theirs = [min(1.0, model.wv.get_vecattr(w, "sample_int") / 2**32) for w in counts]
    ours = Vocabulary(tuple(counts), np.array(list(counts.values()))).keep(0.01)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    assert (Vocabulary(("a",), np.array([3])).keep(0) == 1).all()


@pytest.mark.parametrize("size", [1, 2, 3, 300])
def test_paths_of_the_tree_are_the_shortest_there_are(size: int) -> None:
    vocabulary = zipf(size)
    tree = vocabulary.huffman()
    lengths = np.diff(tree.starts)
    heap, cost = vocabulary.counts.tolist(), 0
    heapq.heapify(heap)
    while len(heap) > 1:
        pair = heapq.heappop(heap) + heapq.heappop(heap)
        cost += pair
        heapq.heappush(heap, pair)
    assert (lengths * vocabulary.counts).sum() == cost
    paths = {
        tuple(zip(tree.nodes[a:b].tolist(), tree.bits[a:b].tolist(), strict=True))
        for a, b in zip(tree.starts, tree.starts[1:], strict=False)
    }
    assert len(paths) == size and tree.nodes.max(initial=0) <= max(0, size - 2)
    if size > 1:  # all paths begin at the root, and together they fill the tree
        assert len({path[0][0] for path in paths}) == 1
        assert sum(2.0**-length for length in lengths) == 1


def test_words_are_chosen_by_frequency() -> None:
    vocabulary, row = choose(
        ["x", "rare", "often", "<end>", "y"], np.array([5, 1, 9, 99, 5]), min_count=2,
        max_words=2, excluded=[3],
    )  # fmt: skip
    assert vocabulary.words == ("often", "x") and vocabulary.counts.tolist() == [9, 5]
    assert row.tolist() == [1, UNKNOWN, 0, UNKNOWN, UNKNOWN]
    with pytest.raises(ModelError, match="no word is frequent enough"):
        choose(["x"], np.array([3]), min_count=4)


def test_texts_become_a_stream() -> None:
    vocabulary, words = from_texts([["b", "a", "b"], [], ["c"]], min_count=1)
    assert vocabulary.words == ("b", "a", "c")
    assert words.rows(0, words.n_tokens).tolist() == [0, 1, 0, BREAK, BREAK, 2, BREAK]
