"""A new file of the user's: whole, or not at all, and never in another's place."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from inkstone import files
from inkstone.errors import CheckpointError, UsageError


def test_a_new_file_is_written_whole(tmp_path: Path) -> None:
    files.write_new(tmp_path / "new.txt", "你好\n", "--output")
    assert (tmp_path / "new.txt").read_text(encoding="utf-8") == "你好\n"
    assert os.listdir(tmp_path) == ["new.txt"]


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="is there already") as caught:
        files.write_new(tmp_path / "mine.txt", "other", "--html")
    assert caught.value.fix == "choose another --html"
    assert (tmp_path / "mine.txt").read_text() == "mine" and os.listdir(tmp_path) == ["mine.txt"]


def test_a_missing_folder_and_a_full_disk_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"cannot write .*No such file or directory"):
        files.write_new(tmp_path / "absent" / "new.txt", "text", "--output")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        files.write_new(tmp_path / "new.txt", "text", "--output")
    assert os.listdir(tmp_path) == []


def test_a_new_file_appears_whole_and_never_onto_another(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "a.bin"
    with pytest.raises(ZeroDivisionError), files.new_file(target) as private:
        private.write_bytes(b"half")
        raise ZeroDivisionError
    assert list(target.parent.iterdir()) == []
    stale = target.with_name(".a.bin.tmp-0123abcd")
    stale.write_bytes(b"of one that was killed")
    with files.new_file(target) as private:
        private.write_bytes(b"whole")
        assert not target.exists() and not stale.exists()
    assert [path.name for path in target.parent.iterdir()] == ["a.bin"]
    with pytest.raises(CheckpointError, match="exists"), files.new_file(target) as private:
        private.write_bytes(b"other")
    assert target.read_bytes() == b"whole"
