"""vectors/table.py and subwords.py: the same answers as Gensim."""

from __future__ import annotations

import numpy as np
import pytest

from inkstone.errors import ModelError, UsageError
from inkstone.vectors.subwords import NGrams, fnv1a
from inkstone.vectors.table import Vectors

keyed = pytest.importorskip("gensim.models.keyedvectors")
fasttext = pytest.importorskip("gensim.models.fasttext_inner")
SIZE = 60
WORDS = tuple(f"word{n}" for n in range(SIZE))


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors(WORDS, np.random.default_rng(0).normal(size=(SIZE, 8)).astype(np.float32))


@pytest.fixture(scope="module")
def theirs(vectors: Vectors) -> object:
    made = keyed.KeyedVectors(8)
    made.add_vectors(list(vectors.words), vectors.matrix)
    return made


@pytest.mark.parametrize(
    "positive, negative",
    [(["word3"], []), (["word1", "word2"], ["word0"]), (["word5"], ["word6", "word7"])],
)
def test_neighbours_are_gensims(
    vectors: Vectors, theirs: object, positive: list[str], negative: list[str]
) -> None:
    for method, name in (("add", "most_similar"), ("mul", "most_similar_cosmul")):
        expected = getattr(theirs, name)(positive=positive, negative=negative, topn=12)
        found = vectors.most_similar(positive, negative, top=12, method=method)  # type: ignore[arg-type]
        assert [n.word for n in found] == [word for word, _ in expected], method
        np.testing.assert_allclose([n.score for n in found], [s for _, s in expected], rtol=2e-5)
    few = vectors.most_similar(positive, negative, restrict=20)
    expected = theirs.most_similar(positive, negative, restrict_vocab=20)  # type: ignore[attr-defined]
    assert [n.word for n in few] == [word for word, _ in expected]


def test_similarity_and_analogy(vectors: Vectors, theirs: object) -> None:
    expected = theirs.similarity("word3", "word9")  # type: ignore[attr-defined]
    assert vectors.similarity("word3", "word9") == pytest.approx(expected, abs=1e-6)
    b, c, a = "word1", "word2", "word0"
    assert vectors.analogy(a, b, c) == vectors.most_similar([b, c], [a])


def test_what_cannot_be_asked(vectors: Vectors) -> None:
    with pytest.raises(UsageError, match="'wordd3' has no vector") as caught:
        vectors.most_similar("wordd3")
    assert "did you mean 'word3'" in str(caught.value)
    with pytest.raises(UsageError, match="no word is given"):
        vectors.most_similar([])
    with pytest.raises(UsageError, match="at least one"):
        vectors.most_similar("word3", top=0)
    with pytest.raises(UsageError, match='"add" or "mul"'):
        vectors.most_similar("word3", method="sum")  # type: ignore[arg-type]
    assert len(vectors.most_similar("word3", top=999)) == SIZE - 1


def test_parts_that_do_not_fit() -> None:
    ones = np.ones((2, 3), np.float32)
    with pytest.raises(ModelError, match="do not fit"):
        Vectors(("a",), ones)
    with pytest.raises(ModelError, match="'a' stands twice"):
        Vectors(("a", "a"), ones)
    with pytest.raises(ModelError, match="not finite"):
        Vectors(("a", "b"), np.array([[1.0], [np.nan]], np.float32))


def test_a_zero_vector_is_near_to_nothing() -> None:
    made = Vectors(("a", "b", "zero"), np.array([[1, 0], [1, 1], [0, 0]], np.float32))
    assert made.similarity("a", "zero") == 0
    assert [n.word for n in made.most_similar("a")] == ["b", "zero"]
    assert made._repr_html_().startswith("<table>") and "3 words" in repr(made)


@pytest.mark.parametrize("word", ["a", "is", "where", "naïve", "水", "北京大学", "x😀y"])
@pytest.mark.parametrize("min_n, max_n", [(3, 6), (1, 2), (2, 2)])
def test_ngrams_and_their_buckets_are_fasttexts(word: str, min_n: int, max_n: int) -> None:
    mine = NGrams(min_n, max_n, 1000)
    theirs = [bytes(x) for x in fasttext.compute_ngrams_bytes(word, min_n, max_n)]
    # Gensim keeps the marks < and > alone as n-grams of one character; fastText does not
    theirs = [x for x in theirs if x not in (b"<", b">")]
    assert sorted(gram.encode() for gram in mine.of(word)) == sorted(theirs)
    assert all(fnv1a(x) == fasttext.ft_hash_bytes(x) for x in theirs)
    assert mine.rows(word).tolist() == [fnv1a(g.encode()) % 1000 for g in mine.of(word)]


def test_an_unknown_word_is_the_mean_of_its_ngrams() -> None:
    ngrams, table = NGrams(3, 4, 50), np.random.default_rng(1).normal(size=(50, 4))
    made = Vectors(
        ("known",),
        np.ones((1, 4), np.float32),
        ngrams=ngrams,
        ngram_matrix=table.astype(np.float32),
    )
    expected = table[[fnv1a(g.encode()) % 50 for g in ngrams.of("new")]].mean(0)
    np.testing.assert_allclose(made["new"], expected, rtol=1e-5)
    assert "new" not in made and made["known"].tolist() == [1, 1, 1, 1]
    assert made.most_similar("new", top=1)[0].word == "known"
    with pytest.raises(UsageError, match="has no vector"):
        made[""]
