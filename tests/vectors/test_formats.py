"""vectors/formats.py: exchanged with Gensim; damaged and hostile files are typed errors."""

from __future__ import annotations

import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import DataError, InkstoneError, UsageError
from inkstone.vectors import formats
from inkstone.vectors.formats import FORMATS, Format
from inkstone.vectors.table import Vectors

keyed = pytest.importorskip("gensim.models.keyedvectors")


def vectors(size: int = 7, d_model: int = 4) -> Vectors:
    matrix = np.random.default_rng(0).normal(size=(size, d_model)).astype(np.float32)
    return Vectors(("the", "水", "naïve", "\u00a0x", "a_b", "😀", "0.5")[:size], matrix)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["v.txt", "v.bin"])
def test_what_is_written_comes_back_and_gensim_opens_it(
    format: Format, name: str, tmp_path: Path
) -> None:
    path, mine = tmp_path / name, vectors()
    formats.write(mine, path, format)
    again = formats.read(path, format)
    assert again.words == mine.words and (again.matrix == mine.matrix).all()
    if name.endswith(".bin") == (format == "word2vec-binary"):
        assert formats.read(path).words == mine.words
    theirs = keyed.KeyedVectors.load_word2vec_format(
        path, binary=format == "word2vec-binary", no_header=format == "glove"
    )
    assert tuple(theirs.index_to_key) == mine.words
    assert (theirs.vectors == mine.matrix).all()
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("binary", [False, True])
def test_files_of_gensim_open(binary: bool, tmp_path: Path) -> None:
    mine = vectors()
    theirs = keyed.KeyedVectors(mine.d_model)
    theirs.add_vectors(list(mine.words), mine.matrix)
    theirs.save_word2vec_format(tmp_path / "v", binary=binary)
    found = formats.read(tmp_path / "v")
    assert found.words == mine.words
    np.testing.assert_allclose(found.matrix, mine.matrix, rtol=1e-6)


def test_words_with_spaces_of_the_published_glove(tmp_path: Path) -> None:
    (tmp_path / "g").write_text("the 1 2\n. . . 3 -4e-1\nat me@example.com 5 6\n")
    found = formats.read(tmp_path / "g")
    assert found.words == ("the", ". . .", "at me@example.com")
    assert found["at me@example.com"].tolist() == [5, 6]
    with pytest.raises(UsageError, match="holds white space"):
        formats.write(found, tmp_path / "out", "glove")


NUMBERS = np.array([1.0, 2.0], "<f4").tobytes()
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "begin with a word"),
    "header only": (b"3 2\n", "need a larger file"),
    "huge count": (b"99999999999999 300\na 1 2\n", "need a larger file"),
    "huge length": (b"1 99999999\na 1\n", "are promised"),
    "no words": (b"0 2\n", "are promised"),
    "beyond 64 bits": (b"%d 2\na 1 2\n" % 10**18, "need a larger file"),
    "too few words": (b"2 2\na 1 2\n   \n\n\n\n", "0 numbers instead of 2"),
    "too many words": (b"1 2\na 1 2\nb 1 2\n", "there are more"),
    "short row": (b"2 3\na 1 2 3\nb 1 2\n", "row 2: 2 numbers instead of 3"),
    "long row": (b"1 2\na 1 2 3\n", "row 1: 3 numbers instead of 2"),
    "nan": (b"1 2\na nan 1\n", "row 1: a number of the word 'a' is not finite"),
    "infinite": (b"1 2\na 1 1e999\n", "not finite"),
    "beyond fp32": (b"1 2\na 1 1e39\n", "not finite"),
    "no number": (b"2 2\na 1 2\nb 1 x\n", "row 2"),
    "endless number": (b"1 2\na 1 " + b"0" * 3000 + b"\n", "too many digits"),
    "twice": (b"2 2\na 1 2\na 3 4\n", "row 2: the word 'a' stands in row 1 already"),
    "not UTF-8": (b"1 2\n\xff\xfe 1 2\n", "is not UTF-8"),
    "overlong UTF-8": (b"1 2\n\xc0\xaf 1 2\n", "is not UTF-8"),
    "no word": (b"1 2\n 1 2\n", "the word is empty"),
    "endless line": (b"1 2\na" + b" 1" * 9000 + b"\n", "too long"),
    "glove, short row": (b"a 1 2 3\nb 1 2\n", "row 2: 2 numbers instead of 3"),
    "glove, long row": (b"a 1 2\nb 1 2 3\n", "row 2: 3 numbers instead of 2"),
    "glove, nan": (b"a 1 2\nb nan 2\n", "not finite"),
    "glove, twice": (b"a 1 2\na 1 2\n", "already"),
    "glove, one word": (b"hello\n", "begin with a word"),
    "pickle": (b"\x80\x04\x95\x00\x00", "begin with a word"),
    "zip": (b"PK\x03\x04" + bytes(60), "begin with a word"),
    "binary, ends in a vector": (b"2 2\na " + NUMBERS + b"\nb " + NUMBERS[:5], "row 2"),
    "binary, ends in a word": (b"2 2\na " + NUMBERS + b"\nbcdefghijklm", "row 2"),
    "binary, more": (b"1 2\na " + NUMBERS + b"\nb " + NUMBERS, "more follows"),
    "binary, endless word": (b"1 2\n" + b"a" * 9000, "longer than any word"),
    "binary, nan": (b"1 2\na " + np.array([1, np.nan], "<f4").tobytes(), "not finite"),
    "binary, twice": (b"2 2\na " + NUMBERS + b"\na " + NUMBERS, "already"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    path = tmp_path / "v"
    path.write_bytes(content)
    with pytest.raises(DataError, match="v") as caught:
        formats.read(path, "word2vec-binary" if name.startswith("binary") else None)
    assert message in str(caught.value) and str(path) in str(caught.value)


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    """65,536 numbers a row, one of them long: as an array of text they would take 170 GB."""
    row = b"w" + b" 1" * 65_535 + b" " + b"1" * 2_000_000
    (tmp_path / "v").write_bytes(b"1 65536\n" + row + b"\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="too many digits"):
        formats.read(tmp_path / "v")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(DataError, match="is not a file"):
            formats.read(path)
    with pytest.raises(UsageError, match="choose one of"):
        formats.read(tmp_path, "text")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="choose one of"):
        formats.write(vectors(), tmp_path / "x", "text")  # type: ignore[arg-type]


@settings(max_examples=150, deadline=None)
@given(
    st.binary(max_size=80), st.sampled_from([b"", b"1 2\n", b"2 1\na "]), st.sampled_from(FORMATS)
)
def test_no_bytes_break_the_reader(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, head: bytes, format: Format
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(head + content)
    for given_format in (format, None):
        try:
            found = formats.read(path, given_format)
        except DataError:
            continue
        assert len(found) == len(set(found.words)) and np.isfinite(found.matrix).all()


@pytest.mark.parametrize("word", ["", "a b", "a\n", "\t", "\ud800", "x" * 2000])
@pytest.mark.parametrize("format", FORMATS)
def test_words_that_no_file_can_hold(word: str, format: Format, tmp_path: Path) -> None:
    bad = Vectors((word,), np.ones((1, 2), np.float32))
    with pytest.raises(UsageError, match="cannot stand in"):
        formats.write(bad, tmp_path / "v", format)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "v").write_text("mine")
    with pytest.raises(InkstoneError, match="exists"):
        formats.write(vectors(), tmp_path / "v", "glove")
    assert (tmp_path / "v").read_text() == "mine"
