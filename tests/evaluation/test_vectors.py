"""evaluation/vectors.py: the numbers of Gensim on the same vectors and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from inkstone.errors import DataError
from inkstone.evaluation.vectors import analogies, evaluate, similarity, spearman
from inkstone.vectors.table import Vectors

keyed = pytest.importorskip("gensim.models.keyedvectors")
CAPITALS = (
    "paris france",
    "rome italy",
    "oslo norway",
    "cairo egypt",
    "lima peru",
    "quito ecuador",
)


def gensim_of(vectors: Vectors) -> keyed.KeyedVectors:
    made = keyed.KeyedVectors(vectors.d_model)
    made.add_vectors(list(vectors.words), vectors.matrix)
    return made


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    """Countries lie near capital + one direction; some words have a second spelling."""
    random = np.random.default_rng(0)
    shift, rows = random.normal(size=8), dict[str, np.ndarray]()
    for pair in CAPITALS:
        capital, country = pair.split()
        rows[capital] = random.normal(size=8)
        rows[country] = rows[capital] + shift + 0.9 * random.normal(size=8)
    for word in ("paris", "italy", "norway", "peru"):
        rows[word.capitalize()] = rows[word] + 0.3 * random.normal(size=8)
    rows |= {f"other{n}": random.normal(size=8) for n in range(40)}
    return Vectors(tuple(rows), np.array(list(rows.values()), np.float32))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    lines = [": capitals"]
    lines += [f"{a} {b}" for a in CAPITALS for b in CAPITALS if a != b]
    lines += [
        ": mixed",
        "Paris FRANCE rome Italy",
        "paris france atlantis sea",
        "oslo Norway Lima peru",
    ]
    path = tmp_path / "questions.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("restrict", [300_000, 20, 8])
def test_analogies_are_counted_as_gensim_does(
    vectors: Vectors, questions: Path, restrict: int
) -> None:
    accuracy, sections = gensim_of(vectors).evaluate_word_analogies(
        str(questions), restrict_vocab=restrict
    )
    found = analogies(vectors, questions, restrict=restrict)
    assert found.accuracy == accuracy and 0 < found.correct < found.asked
    for section in sections[:-1]:
        right, wrong = len(section["correct"]), len(section["incorrect"])
        assert found.sections.get(section["section"], (0, 0)) == (right, right + wrong)
    assert found.asked + found.skipped == 33
    assert found.to_dict()["kind"] == "analogies" and f"{restrict:,}" in found.rule


def test_products_rank_otherwise(vectors: Vectors, questions: Path) -> None:
    found = analogies(vectors, questions, method="mul")
    assert "3CosMul" in found.rule and found.asked == 32
    expected = 0
    for line in questions.read_text().lower().splitlines():
        words = line.split()
        if len(words) == 4 and all(w in vectors for w in words):
            a, b, c, d = words
            near = vectors.analogy(a, b, c, top=9, method="mul")
            given = {a, b, c}
            expected += next(n.word.lower() for n in near if n.word.lower() not in given) == d
    assert found.correct == expected > 0


def test_similarity_is_gensims(vectors: Vectors, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    words = [*vectors.words, "unknown"]
    lines = [
        f"{random.choice(words).upper()}\t{random.choice(words)}\t{random.integers(6)}"
        for _ in range(200)
    ]
    path = tmp_path / "pairs.tsv"
    path.write_text("# people's scores\n" + "\n".join(lines) + "\n")
    _, (rho, _), missing = gensim_of(vectors).evaluate_word_pairs(str(path))
    found = similarity(vectors, path)
    assert found.spearman == pytest.approx(rho, abs=1e-6)
    assert found.skipped == pytest.approx(missing / 100 * 200) and found.skipped > 0
    assert found.pairs + found.skipped == 200


def test_ranks_that_are_shared() -> None:
    random = np.random.default_rng(2)
    x, y = (random.integers(5, size=50).astype(float) for _ in range(2))
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert np.isnan(spearman(np.ones(4), np.arange(4.0))) and np.isnan(spearman(x[:0], y[:0]))


def test_the_file_says_what_it_is(vectors: Vectors, questions: Path, tmp_path: Path) -> None:
    assert evaluate(vectors, questions).asked == 32
    (tmp_path / "pairs").write_text("Word 1,Word 2,x\n".replace(",", "\t") + "paris\trome\t3\n")
    assert evaluate(vectors, tmp_path / "pairs").pairs == 1
    empty = tmp_path / "empty"
    empty.write_text("")
    assert evaluate(vectors, empty).to_dict()["pairs"] == 0


@pytest.mark.parametrize("content", ["a b c d\n\na b c\n", ": s\na b c d e\n"])
def test_damaged_analogies(content: str, vectors: Vectors, tmp_path: Path) -> None:
    (tmp_path / "q").write_text(content)
    with pytest.raises(DataError, match=r"q:[23]: \d words instead of four"):
        evaluate(vectors, tmp_path / "q")


@pytest.mark.parametrize("content", ["a\tb\t1\na\tb\tx\n", "a\tb\t1\nparis rome\n"])
def test_damaged_pairs(content: str, vectors: Vectors, tmp_path: Path) -> None:
    (tmp_path / "q").write_text(content)
    with pytest.raises(DataError, match="q:2: not a pair of words and a score"):
        evaluate(vectors, tmp_path / "q")


def test_files_that_cannot_be_read(
    vectors: Vectors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "q").write_bytes(b"a b c d\n\xff")
    for path, message in ((tmp_path / "q", "not UTF-8 at byte 8"), (tmp_path, "directory"),
                          (tmp_path / "no", "No such file")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            evaluate(vectors, path)
    monkeypatch.setattr("inkstone.evaluation.vectors.MAX_BYTES", 5)
    with pytest.raises(DataError, match="larger than 5 bytes"):
        evaluate(vectors, tmp_path / "q")


def test_the_published_files(shared_data: Path) -> None:
    folder = shared_data / "word-similarity"
    words = sorted(
        {w.lower() for p in (folder / "wordsim353.tsv", folder / "ca_translated.txt")
         for line in p.read_text().splitlines() if not line.startswith(":")
         for w in line.split()[:4]}
    )  # fmt: skip
    made = Vectors(tuple(words), np.random.default_rng(3).normal(size=(len(words), 9)).astype("f4"))
    assert evaluate(made, folder / "wordsim353.tsv").pairs == 353
    assert evaluate(made, folder / "ca_translated.txt").asked > 900
    assert evaluate(made, folder / "questions-words.txt").skipped > 19_000
