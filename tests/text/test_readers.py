"""Every format, every kind of damage that a corpus file can have: documents, or an error that says
which file, which line and what to do."""

from __future__ import annotations

import errno
import gzip
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inkstone.errors import DataError, InkstoneError
from inkstone.text.config import TextConfig
from inkstone.text.files import find_files
from inkstone.text.log import ReadLog
from inkstone.text.markup import all_text
from inkstone.text.readers import READERS, read
from inkstone.text.streams import open_file


def texts(data: Any, **settings: Any) -> list[str]:
    return [document.text for document in read(data, config=TextConfig(**settings))]


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


ROWS = ['a "quoted" word', "second,\nwith a newline", "第三行"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.csv", "x.tsv", "x.jsonl.gz", "x.jsonl.zst"])
def test_tables_in_every_wrapping(tmp_path: Path, name: str) -> None:
    rows = [row.replace("\n", " ") for row in ROWS] if ".tsv" in name else ROWS
    if ".jsonl" in name:
        content = "".join(json.dumps({"id": 1, "text": row}) + "\n" for row in rows).encode()
    elif ".csv" in name:
        quoted = ("".join(f'1,"{row.replace(chr(34), chr(34) * 2)}"\r\n' for row in rows)).encode()
        content = b"id,text\r\n" + quoted
    else:
        content = ("id\ttext\n" + "".join(f"1\t{row}\n" for row in rows)).encode()
    if name.endswith(".gz"):
        content = gzip.compress(content, mtime=0)
    if name.endswith(".zst"):
        half = len(content) // 2  # two frames, one after another
        compress = zstandard.ZstdCompressor().compress
        content = compress(content[:half]) + compress(content[half:])
    assert texts(write(tmp_path, name, content)) == rows


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"id": [1, 2, 3], "text": ROWS})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    assert texts(tmp_path) == ROWS
    whole = (tmp_path / "x.parquet").read_bytes()
    for size in (0, 3, 4, len(whole) // 2, len(whole) - 1):
        (tmp_path / "x.parquet").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"x\.parquet"):
            texts(tmp_path)


def test_html_keeps_the_text_and_nothing_else() -> None:
    page = """<!doctype html><title>T</title><style>p{}</style><script>alert("<p>no</p>")</script>
    <h1>Head</h1><p title='a > b'>One &amp; two<br>three</p><!-- gone --><p>四</p>"""
    assert [line for line in all_text(page).split("\n") if line.strip()] == [
        "Head", "One & two", "three", "四",
    ]  # fmt: skip
    assert "ok" in all_text("<div" * 50_000 + ">ok")  # unclosed: linear, and no recursion


def test_folders_globs_and_lists(tmp_path: Path) -> None:
    write(tmp_path, "b/two.md", "two")
    write(tmp_path, "a.txt", "one")
    write(tmp_path, "b/c/three.TXT", "three")
    write(tmp_path, "b/.hidden/no.txt", "hidden")
    write(tmp_path, "b/picture.png", "not text")
    log = ReadLog(TextConfig())
    found = [d.text for d in read(tmp_path, config=TextConfig(), log=log)]
    assert found == ["one", "three", "two"] and log.skipped["files of other kinds"] == 1
    assert texts(str(tmp_path / "**" / "*.md")) == ["two"]
    assert texts([tmp_path / "a.txt", tmp_path]) == ["one", "three", "two"]
    with pytest.raises(DataError, match="unknown kind"):
        texts(tmp_path / "b" / "picture.png")
    with pytest.raises(DataError, match="does not exist"):
        texts(tmp_path / "absent.txt")
    with pytest.raises(DataError, match="matches"):
        texts(str(tmp_path / "*.csv"))


def test_names_of_any_bytes(tmp_path: Path) -> None:
    for number, name in enumerate((b"new\nline.txt", b"\xff\xfe.txt", "名.txt".encode())):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_text(f"text {number}")
    documents = list(read(tmp_path, config=TextConfig()))
    assert sorted(d.text for d in documents) == ["text 0", "text 1", "text 2"]
    for document in documents:
        assert document.source.isprintable()
        document.source.encode("utf-8")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", [""]),
        (b"\xef\xbb\xbf", [""]),
        (b"\xef\xbb\xbfmarked", ["marked"]),
        ("utf-16 名".encode("utf-16"), ["utf-16 名"]),
        (b"\xfe\xff" + "big 名".encode("utf-16-be"), ["big 名"]),
        ("utf-32 名".encode("utf-32"), ["utf-32 名"]),
        (b"one NUL\x00 in a text", ["one NUL\x00 in a text"]),
        (b"a\rb\r\nc\n", ["a\rb\r\nc\n"]),
    ],
)
def test_encodings_that_say_what_they_are(
    tmp_path: Path, content: bytes, expected: list[str]
) -> None:
    assert texts(write(tmp_path, "x.txt", content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "caf\xe9\n".encode("latin-1"), "line 1: byte 0xe9 is not valid UTF-8"),
        ("x.txt", b"fine\nfine\n\xc0\xaf overlong", "line 3"),
        ("x.txt", b"\xed\xa0\x80 surrogate", "not valid UTF-8"),
        ("x.txt", "no mark".encode("utf-16-le"), "zero bytes"),
        ("x.txt", b"\xff\xfe" + b"a\x00b", "UTF-16"),
        ("x.txt", b"%PDF-1.7 \xe2\xe3\xcf\xd3", "pdftotext"),
        ("x.jsonl", b'{"text": "\\ud800"}', "line 1: .*surrogate"),
        ("x.jsonl", b'{"text": 1}', "holds a number"),
        ("x.jsonl", b'{"text": "a"}\n{"text": ["b"]}', "line 2: .*a list"),
        ("x.jsonl", b'{"text": "a", "text": "b"}', "'text' stands twice"),
        ("x.jsonl", b'{"body": "a"}', 'text.field="body"'),
        ("x.jsonl", b'{"messages": []}', "dialogue"),
        ("x.jsonl", b"[1, 2]", "a list, not an object"),
        ("x.jsonl", b'{"text": "a"} {"text": "b"}', "more text after the object"),
        ("x.jsonl", b'{"text": ' + b"[" * 100_000, "line 1"),
        ("x.jsonl", b'{"text": "cut', "line 1: not valid JSON"),
        ("x.csv", b"id,text\n1,a,b\n", "3 fields, but 2 columns"),
        ("x.csv", b'id,text\n1,"never closed\n', "line 2"),
        ("x.csv", b"text,text\na,b\n", "stands twice"),
        ("x.csv", b"id,body\n1,a\n", 'text.field="'),
        ("x.txt.gz", gzip.compress(b"whole" * 1000, mtime=0)[:-9], "truncated"),
        ("x.txt.gz", b"not gzip at all", "damaged"),
        ("x.txt.zst", zstandard.ZstdCompressor().compress(b"whole" * 1000)[:-3], "damaged"),
        ("x.txt.zst", b"not zstd", "damaged"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        texts(path)
    assert path.name in str(caught.value) and caught.value.fix
    good = write(tmp_path / "more", "good.txt", "good")
    log = ReadLog(TextConfig(on_error="skip"))
    found = [d.text for d in read([path, good], config=TextConfig(on_error="skip"), log=log)]
    assert found[-1] == "good" and sum(log.skipped.values()) >= 1


def test_harmless_oddities_of_jsonl(tmp_path: Path) -> None:
    lines = '{"text": "a", "x": NaN}\n\n{"text": null}\r\n{"y": Infinity, "text": "<|endoftext|>"}'
    assert texts(write(tmp_path, "x.jsonl", lines)) == ["a", "", "<|endoftext|>"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_bomb_is_stopped(tmp_path: Path, suffix: str) -> None:
    zeros = b"0" * (80 << 20)
    packed = gzip.compress(zeros, mtime=0) if suffix == ".gz" else zstandard.compress(zeros)
    path = write(tmp_path, f"bomb.txt{suffix}", packed)
    with pytest.raises(DataError, match="holds more than"):
        texts(path)


def test_one_endless_line_is_stopped(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.csv"):
        path = write(tmp_path, name, b"text" + b"x" * 200_000)
        with pytest.raises(DataError, match=r"line 1: longer than text\.max_document_bytes"):
            texts(path, max_document_bytes=100_000)
    path = write(tmp_path, "x.txt", b"word " * 100_000)
    assert "".join(texts(path)) == "word " * 100_000  # cut at spaces, nothing lost


def test_links_do_not_leave_the_folder(tmp_path: Path) -> None:
    secret = write(tmp_path, "secret.txt", "a private key")
    folder = tmp_path / "corpus"
    write(folder, "a.txt", "one")
    (folder / "inside.txt").symlink_to(folder / "a.txt")
    (folder / "loop").symlink_to(folder)
    assert texts(folder) == ["one", "one"]
    (folder / "out.txt").symlink_to(secret)
    with pytest.raises(DataError, match="leads out of the folder"):
        texts(folder)
    assert "a private key" not in texts(folder, on_error="skip")
    (folder / "out.txt").unlink()
    (folder / "self.txt").symlink_to(folder / "self.txt")
    with pytest.raises(DataError):
        texts(folder / "self.txt")


def test_pipes_and_devices_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(DataError, match="not a regular file"):
        texts(tmp_path)
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(DataError, match="not a regular file"):
            open_file(path)


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, good = write(tmp_path, "x.txt", "secret"), write(tmp_path, "y.txt", "good")
    real = os.open

    def closed(name: Any, *options: Any, **more: Any) -> int:
        if os.fspath(name) == str(path):  # as for anyone but root, who may read everything
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *options, **more)

    monkeypatch.setattr(os, "open", closed)
    with pytest.raises(DataError, match=r"x\.txt: Permission denied"):
        texts(tmp_path)
    assert texts([path, good], on_error="skip") == ["good"]


def test_a_parquet_bomb_is_stopped(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number, dictionary in enumerate((True, False)):
        path = tmp_path / f"{number}.parquet"
        table = arrow.table({"text": ["0" * (1 << 20)] * 100})
        parquet.write_table(table, path, use_dictionary=dictionary, compression="zstd")
        assert path.stat().st_size < 200_000
        with pytest.raises(DataError, match=f"{number}.parquet: its texts are more than"):
            for text in texts(path):
                assert len(text) == 1 << 20


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, "x.jsonl", '{"text": "a"}\n' * 100_000)
    documents = read(path, config=TextConfig())
    next(documents)
    with open(path, "ab") as file:
        file.write(b'{"text": "b"}\n')
    with pytest.raises(DataError, match="changed while it was read"):
        list(documents)


def test_a_file_that_is_gone_when_its_turn_comes(tmp_path: Path) -> None:
    first, second = write(tmp_path, "a.txt", "a"), write(tmp_path, "b.txt", "b")
    documents = read(tmp_path, config=TextConfig())
    assert next(documents).text == "a" and first.exists()
    second.unlink()
    with pytest.raises(DataError, match=r"b\.txt"):
        next(documents)


@pytest.mark.parametrize("how", ["auto", "blank_line", "line", "file"])
def test_cutting_loses_nothing(tmp_path: Path, how: str) -> None:
    dice = random.Random(0)
    words = ["word", "另一个", "line\n", "\n\n", "\r\n\r\n", "x" * 300]
    text = "".join(dice.choice(words) + " " for _ in range(20_000))
    path = write(tmp_path, "x.txt", text)
    pieces = texts(path, split_on=how)
    if how == "line":
        assert pieces == [line.rstrip("\r") for line in text.split("\n")]
    else:
        assert "".join(pieces) == text
    if how == "auto":
        assert len(pieces) > 10 and max(len(p.encode()) for p in pieces) <= 4 * 4096


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.binary(max_size=400), kind=st.sampled_from(sorted(READERS)),
    packed=st.sampled_from(["", ".gz", ".zst"]),
    how=st.sampled_from(["auto", "file", "line", "blank_line"]),
)  # fmt: skip
def test_any_bytes_are_documents_or_a_typed_error(
    tmp_path: Path, content: bytes, kind: str, packed: str, how: str
) -> None:
    path = write(tmp_path, f"x{kind}{packed}", content)
    try:
        for text in texts(path, split_on=how):
            text.encode("utf-8")
    except InkstoneError as error:
        assert path.name in str(error)
    finally:
        path.unlink()


def test_readers_open_no_socket_and_run_nothing(
    tmp_path: Path, no_side_effects: Callable[[], Any]
) -> None:
    write(tmp_path, "x.html", '<img src="http://127.0.0.1:1/x"><a href="file:///etc/passwd">t</a>')
    write(tmp_path, "y.jsonl", "{\"text\": \"{{ __import__('os').system('x') }}\"}")
    with no_side_effects():
        assert len(texts(tmp_path)) == 2


def test_many_small_files_are_listed_quickly(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.txt").touch()
    assert len(find_files(tmp_path)) == 2000


def test_readers_work_beside_each_other(tmp_path: Path) -> None:
    path = write(tmp_path, "x.csv", "text\n" + "row\n" * 1000)
    counts: list[int] = []
    threads = [threading.Thread(target=lambda: counts.append(len(texts(path)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1000] * 4
