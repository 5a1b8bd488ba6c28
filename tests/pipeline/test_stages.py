"""pipeline/stages.py: results appear whole, once, and under a key that covers their input."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from inkstone.pipeline.observer import Observer
from inkstone.pipeline.stages import StageCache, cache_folder, code_hash, key_of


class Notes(Observer):
    def __init__(self) -> None:
        self.lines: list[tuple[str, bool]] = []

    def stage_done(self, name: str, line: str, seconds: float, *, reused: bool = False) -> None:
        self.lines.append((line, reused))


def build(out: Path) -> str:
    (out / "x").write_text("content")
    return "made"


def describe(folder: Path) -> str:
    return (folder / "x").read_text()


def test_a_stage_runs_once_and_says_when_it_is_reused(tmp_path: Path) -> None:
    notes = Notes()
    cache = StageCache(tmp_path, notes)
    first = cache.get("clean", "k1", build, describe)
    assert cache.get("clean", "k1", build, describe) == first
    assert cache.get("clean", "k2", build, describe) != first
    assert [reused for _, reused in notes.lines] == [False, True, False]
    assert notes.lines[1][0].startswith("reused: content")


def test_a_stage_that_fails_leaves_nothing_and_can_run_again(tmp_path: Path) -> None:
    cache = StageCache(tmp_path, Notes())

    def fail(out: Path) -> str:
        (out / "half").write_text("…")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.get("clean", "k", fail, describe)
    assert [p.name for p in tmp_path.iterdir()] == ["locks"]
    stale = tmp_path / ".clean-k.99999.tmp"  # what a killed process leaves
    stale.mkdir()
    assert describe(cache.get("clean", "k", build, describe)) == "content"
    assert not stale.exists()


def test_two_that_want_the_same_build_it_once(tmp_path: Path) -> None:
    built = []
    meet = threading.Barrier(2)

    def slow(out: Path) -> str:
        built.append(out)
        return build(out)

    def work() -> None:
        meet.wait()
        StageCache(tmp_path, Notes()).get("clean", "k", slow, describe)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1


def test_keys_cover_values_and_code() -> None:
    assert key_of("a", {"x": 1, "y": 2}) == key_of("a", {"y": 2, "x": 1})
    assert len({key_of("a", "b"), key_of("ab"), key_of("a", ["b"]), key_of("b", "a")}) == 4
    assert code_hash("text") != code_hash("tokenizers")


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    assert cache_folder(tmp_path / "b") == tmp_path / "b"
    monkeypatch.delenv("INKSTONE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder().is_relative_to(tmp_path / "c")
