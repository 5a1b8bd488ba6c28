"""Predictions on files: any format, cut off anywhere and gone on with, byte for byte the same."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import inkstone as ink
from inkstone import pipeline
from inkstone.errors import DataError, RunError, UsageError
from inkstone.inference import predict
from inkstone.pipeline import examples_use, partial
from inkstone.pipeline.observer import Observer
from inkstone.recipe import Recipe

PORTION = 8  # of the predictor, so that a small file has several
WORDS = ("good", "bad", "fine", "poor", "great", "awful")


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"id": i, "text": f"{WORDS[i % 6]} {'é' * (i % 3)} film {i * i}", "label": "np"[i % 2]}
        for i in range(count)
    ]


def write(path: Path, examples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A network and a bag of words."""
    folder = tmp_path_factory.mktemp("models")
    data = write(folder / "rows.jsonl", rows(60))
    opened = {}
    for name, more in {
        "bag_of_words": {},
        "bert": {"d_model": 32, "n_layers": 1, "n_heads": 2},
    }.items():
        values = {
            "data": {"path": (str(data),)}, "task": {"name": "classification"},
            "tokenizer": {"vocab_size": 300}, "model": {"family": name, **more},
            "training": {"precision": "fp32", "max_steps": 3},
        }  # fmt: skip
        pipeline.train(Recipe().with_values(values), folder / name, cache=folder / "cache")
        opened[name] = ink.load(folder / name)
    return opened


@pytest.fixture(autouse=True)
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (predict, examples_use):
        monkeypatch.setattr(module, "EXAMPLES_AT_ONCE", PORTION)


class Heard(Observer):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.rates: list[tuple[int, int | None]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int | None, unit: str) -> None:
        self.rates.append((done, total))


class CutOff(BaseException):
    """As Ctrl-C or SIGTERM would be."""


def cut_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """The next run ends after so many rows were computed."""
    original = examples_use._rows

    def cut(*arguments: Any) -> Iterator[Any]:
        for number, row in enumerate(original(*arguments)):
            if number == count:
                raise CutOff
            yield row

    monkeypatch.setattr(examples_use, "_rows", cut)


@pytest.mark.parametrize("family", ["bert", "bag_of_words"])
@pytest.mark.parametrize("cut", [0, 3, PORTION, PORTION + 5, 3 * PORTION + 1])
def test_it_goes_on_byte_for_byte(
    models: dict[str, Any], family: str, cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(tmp_path / "in.jsonl", rows(4 * PORTION + 3))
    model, whole, out = models[family], tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert model.predict_file(source, whole) == 4 * PORTION + 3
    with monkeypatch.context() as patch:
        cut_after(patch, cut)
        with pytest.raises(CutOff):
            model.predict_file(source, out)
    assert not out.exists()
    done = cut // PORTION * PORTION
    left = tmp_path / "out.jsonl.partial"
    assert left.exists() == bool(done)
    if done:
        with open(left, "ab") as file:
            file.write(b'{"id": 99, "text": "half a li')
    heard = Heard()
    assert model.predict_file(source, out, observer=heard) == 4 * PORTION + 3
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "whole.jsonl"]
    assert any(f"goes on after {done}" in note for note in heard.notes) == bool(done)
    assert heard.rates[-1] == (4 * PORTION + 3 - done,) * 2


def test_a_signal_between_a_write_and_its_count(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", rows(40)), tmp_path / "out.jsonl"
    original, calls = partial.Done.and_also, [0]

    def cut(self: partial.Done, *arguments: Any) -> partial.Done:
        calls[0] += 1
        if calls[0] == 3:  # the rows are in the file, and nobody has counted them
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(partial.Done, "and_also", cut)
        with pytest.raises(KeyboardInterrupt):
            models["bert"].predict_file(source, out)
    assert models["bert"].predict_file(source, out) == 40
    models["bert"].predict_file(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_killed_in_the_middle(models: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 of another process, as soon as it has noted some rows."""
    source = write(tmp_path / "in.jsonl", rows(40))
    model, out = models["bert"], tmp_path / "out.jsonl"
    script = (
        "import sys, time, inkstone as ink\n"
        "from inkstone.pipeline.observer import Observer\n"
        "from inkstone.inference import predict\n"
        "from inkstone.pipeline import examples_use, partial\n"
        f"predict.EXAMPLES_AT_ONCE = examples_use.EXAMPLES_AT_ONCE = {PORTION}\n"
        "partial.SAVE_EVERY_S = 0\n"
        "class Slow(Observer):\n"
        "    def progress(self, done, total, unit): print(done, flush=True); time.sleep(60)\n"
        "ink.load(sys.argv[1]).predict_file(sys.argv[2], sys.argv[3], observer=Slow())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(model.path), str(source), str(out)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == f"{PORTION}\n".encode()
        with pytest.raises(RunError, match="another process"):  # it is still at it
            model.predict_file(source, out)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert not out.exists() and (tmp_path / "out.jsonl.partial").exists()
    heard = Heard()
    assert model.predict_file(source, out, observer=heard) == 40
    assert f"goes on after {PORTION}" in heard.notes[0]
    model.predict_file(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture
def half_done(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, Path]:
    """An input of forty, and an output that was cut off after two portions."""
    source, out = write(tmp_path / "in.jsonl", rows(40)), tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        cut_after(patch, 2 * PORTION + 1)
        with pytest.raises(CutOff):
            models["bert"].predict_file(source, out)
    return source, out


def test_what_does_not_fit_is_refused(
    models: dict[str, Any], half_done: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = half_done
    rest, note = tmp_path / "out.jsonl.partial", tmp_path / "out.jsonl.partial.json"
    before = {path: path.read_bytes() for path in (rest, note)}
    changed = rows(40)
    changed[3]["text"] += "!"

    def shortened() -> None:
        write(source, rows(2 * PORTION - 1))

    def flipped() -> None:
        rest.write_bytes(before[rest].replace(b"good", b"goof", 1))

    def cut_short() -> None:
        rest.write_bytes(before[rest][:-1])

    def bad_note() -> None:
        note.write_text(note.read_text().replace('"records": 16', '"records": -16'))

    spoilt: list[tuple[str, Callable[[], Any]]] = [
        ("input has changed", lambda: write(source, changed)),
        ("input has changed", shortened),
        ("not as it was written", flipped),
        ("not as it was written", cut_short),
        ("no note", bad_note),
        ("damaged", lambda: note.write_text("{")),
    ]
    for reason, spoil in spoilt:
        spoil()
        with pytest.raises(RunError, match=reason) as told:
            models["bert"].predict_file(source, out)
        assert "--output" in str(told.value) and not out.exists()
        write(source, rows(40))
        for path, content in before.items():
            path.write_bytes(content)
    with pytest.raises(RunError, match="another model"):
        models["bag_of_words"].predict_file(source, out)
    assert rest.read_bytes() == before[rest] and note.read_bytes() == before[note]
    assert models["bert"].predict_file(source, out) == 40


def test_a_bad_line_is_mended_and_it_goes_on(models: dict[str, Any], tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = rows(40)
    write(source, good)
    lines = source.read_text().splitlines(keepends=True)
    lines[20] = '{"text": 7}\n'
    source.write_text("".join(lines))
    heard = Heard()
    with pytest.raises(DataError, match="line 21"):
        models["bert"].predict_file(source, out, observer=heard)
    assert "the same command goes on" in heard.notes[-1]
    heard = Heard()
    assert models["bert"].predict_file(source, tmp_path / "skip.jsonl", on_error="skip",
                                       observer=heard) == 39  # fmt: skip
    assert "skipped 1 bad records" in heard.notes[0] and "line 21" in heard.notes[0]
    write(source, good)
    heard = Heard()
    assert models["bert"].predict_file(source, out, observer=heard) == 40
    assert f"goes on after {2 * PORTION}" in heard.notes[0]
    models["bert"].predict_file(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_nothing_is_overwritten(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", rows(12)), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        models["bert"].predict_file(source, out)
    assert out.read_text() == "mine"
    other = tmp_path / "other.jsonl"
    stranger = tmp_path / "other.jsonl.partial"
    stranger.write_text("mine")
    with pytest.raises(UsageError, match="no output that was cut off"):
        models["bert"].predict_file(source, other)
    assert stranger.read_text() == "mine"
    stranger.unlink()
    stranger.symlink_to(out)
    with pytest.raises(DataError):
        models["bert"].predict_file(source, other)
    stranger.unlink()
    original = partial.Partial.save

    def save(self: partial.Partial) -> None:
        original(self)
        if self.records == 12:
            other.write_text("came meanwhile")

    with monkeypatch.context() as patch:
        patch.setattr(partial.Partial, "save", save)
        with pytest.raises(UsageError, match="come while"):
            models["bert"].predict_file(source, other)
    assert other.read_text() == "came meanwhile"
    other.unlink()
    assert models["bert"].predict_file(source, other) == 12
    with pytest.raises(DataError, match="cannot write"):
        models["bert"].predict_file(source, tmp_path / "absent" / "out.jsonl")


def test_a_full_disk_loses_nothing(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write(tmp_path / "in.jsonl", rows(40)), tmp_path / "out.jsonl"
    original, written = os.write, [0]

    def full(file: int, data: Any) -> int:
        if written[0] == 2:  # half of a portion still fits
            written[0] += 1
            return original(file, bytes(data)[: len(data) // 2])
        if written[0] > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written[0] += 1
        return original(file, data)

    with monkeypatch.context() as patch:
        patch.setattr("inkstone.pipeline.partial.os.write", full)
        with pytest.raises(DataError, match="No space left") as told:
            models["bert"].predict_file(source, out)
    assert f"{2 * PORTION} rows are kept" in str(told.value)
    assert "the same command" in str(told.value)
    assert models["bert"].predict_file(source, out) == 40
    models["bert"].predict_file(source, tmp_path / "whole.jsonl")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_other_tables(
    models: dict[str, Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, source = rows(20), tmp_path / f"in.{kind}"
    if kind == "parquet":
        arrow = pytest.importorskip("pyarrow", reason="the extra data is not installed")
        import datetime

        for row in table:
            row["day"] = datetime.date(2020, 1, 1 + row["id"])
        pytest.importorskip("pyarrow.parquet").write_table(arrow.Table.from_pylist(table), source)
    else:
        mark = {"csv": ",", "tsv": "\t"}[kind]
        lines = [mark.join(map(str, row.values())) for row in table]
        source.write_text("\n".join([mark.join(table[0]), *lines]) + "\n", encoding="utf-8")
    out = tmp_path / "out.jsonl"
    with monkeypatch.context() as patch:
        cut_after(patch, PORTION + 2)
        with pytest.raises(CutOff):
            models["bert"].predict_file(source, out)
    assert models["bert"].predict_file(source, out) == 20
    found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [str(row["id"]) for row in found] == [str(i) for i in range(20)]
    assert all(set(row) == {*table[0], "prediction"} for row in found)
    text = models["bert"].classify([row["text"] for row in table])
    assert [row["prediction"]["label"] for row in found] == [x.label for x in text]


def test_odd_values_pass_through(models: dict[str, Any], tmp_path: Path) -> None:
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"text": "é", "half": "\\ud83d", "deep": {"a": [1, null]}}\n')
    models["bert"].predict_file(source, out)
    row = json.loads(out.read_bytes().decode("utf-8"))
    assert row["half"] == "\ud83d" and row["deep"] == {"a": [1, None]} and row["text"] == "é"
    with pytest.raises(DataError, match="'prediction' already"):
        models["bert"].predict_file(out, tmp_path / "again.jsonl")
    source.write_text("")
    assert models["bert"].predict_file(source, tmp_path / "none.jsonl") == 0
    assert (tmp_path / "none.jsonl").read_bytes() == b""


def test_memory_does_not_grow(models: dict[str, Any], tmp_path: Path) -> None:
    """Rows in flight are those of one portion and the one that is written."""
    source, held, most = write(tmp_path / "in.jsonl", rows(200)), [0], [0]
    original = examples_use._pairs

    def counted(*arguments: Any) -> Iterator[Any]:
        for pair in original(*arguments):
            held[0] += 1
            most[0] = max(most[0], held[0])
            yield pair

    class Done(Observer):
        def progress(self, done: int, total: int | None, unit: str) -> None:
            held[0] = 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples_use, "_pairs", counted)
        models["bert"].predict_file(source, tmp_path / "out.jsonl", observer=Done())
    assert most[0] <= 2 * PORTION


def test_on_the_command_line(models: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    from inkstone.cli.main import main

    source, out = write(tmp_path / "in.jsonl", rows(12)), tmp_path / "out.jsonl"
    with open(source, "a") as file:
        file.write("no json\n")
    run = str(models["bert"].path.parent)
    given = ["run", run, "--input", str(source), "--output", str(out)]
    assert main(given) == 1
    told = capsys.readouterr()
    assert "line 13" in told.err and "Traceback" not in told.err and not out.exists()
    assert main([*given, "--on-error", "skip", "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"output": str(out), "predictions": 12}
    assert "12 predictions in" in told.err and "skipped 1 bad records" in told.err
    assert main([*given, "--on-error", "perhaps"]) == 2
    assert main(given) == 2  # it is there
    capsys.readouterr()
    assert main(["run", run, "--input", str(source), "--on-error", "skip"]) == 0
    assert capsys.readouterr().out == out.read_text(encoding="utf-8")


def test_progress_lines_have_a_rate_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from inkstone.cli.progress import progress_line

    monkeypatch.setattr("inkstone.cli.progress.time.monotonic", lambda: 10.0)
    assert progress_line(500, 2000, "examples", 0.0) == "500 examples · 50 examples/s · 0:30 left"
    assert progress_line(500, None, "examples", 0.0) == "500 examples · 50 examples/s"
