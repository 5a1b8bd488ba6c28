"""Records of tables: the same from every format, bounded, and errors that name the place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from inkstone.errors import DataError
from inkstone.text.config import TextConfig
from inkstone.text.log import ReadLog
from inkstone.text.table import read_table

ROWS = [{"text": "a, b", "label": "x"}, {"text": 'say "hi"', "label": "y"}]


def read(path: Path, **settings: Any) -> list[dict[str, Any]]:
    config = TextConfig(**settings)
    return [dict(r.values) for r in read_table(path, ["text", "label"], config=config)]


def test_every_format_gives_the_same_records(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress("\n".join(map(json.dumps, ROWS)).encode(), mtime=0)
    )
    (tmp_path / "c.csv").write_text('text,label\n"a, b",x\n"say ""hi""",y\n')
    (tmp_path / "d.tsv").write_text('text\tlabel\na, b\tx\nsay "hi"\ty\n')
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"text": [r["text"] for r in ROWS], "label": [r["label"] for r in ROWS]})
    parquet.write_table(table, tmp_path / "e.parquet")
    for name in ("a.jsonl", "b.jsonl.gz", "c.csv", "d.tsv", "e.parquet"):
        assert read(tmp_path / name) == ROWS, name


def test_parquet_reads_lists_and_tells_all_names(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"tokens": [["a", "b"], []], "id": [1, 2], "more": ["x", "y"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    config = TextConfig()
    first, second = read_table(tmp_path / "t.parquet", ["tokens", "tags"], config=config)
    assert first.values == {"tokens": ["a", "b"]} and second.values == {"tokens": []}
    assert first.names == ("tokens", "id", "more")


def test_bad_records_name_their_line_or_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n[1, 2]\n" + json.dumps(ROWS[1]) + "\n{broken\n")
    with pytest.raises(DataError, match=r"line 2: holds a list"):
        read(path)
    log = ReadLog(TextConfig(on_error="skip"))
    rows = list(read_table(path, ["text"], config=log.config, log=log))
    assert [row.index for row in rows] == [1, 3] and log.skipped["bad records"] == 2


def test_what_is_no_table_is_refused_and_other_files_of_a_folder_are_passed_over(
    tmp_path: Path,
) -> None:
    (tmp_path / "README.md").write_text("# about")
    with pytest.raises(DataError, match="no table of examples"):
        read(tmp_path / "README.md")
    with pytest.raises(DataError, match="no table of examples"):
        read(tmp_path)
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    assert read(tmp_path) == [{"text": "a", "label": "b"}]
    with pytest.raises(DataError, match="no table of examples"):
        list(read_table([tmp_path / "a.csv", tmp_path / "README.md"], [], config=TextConfig()))
