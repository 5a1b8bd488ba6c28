"""One small finished run, shared by the tests of a worker process."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inkstone.cli.main import main

SMALL = (
    "tokenizer.vocab_size=300", "corpus.seq_len=32", "model.d_model=32", "model.n_layers=1",
    "model.n_heads=1", "training.tokens_per_step=256", "evaluation.sample_tokens=8",
    "training.precision=fp32",
)  # fmt: skip
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "red",
    "blue",
    "green",
    "fish",
    "near",
    "old",
    "stone",
    "river",
]


@dataclass
class Told:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Tool:
    """Runs commands in this process."""

    small = SMALL

    def __call__(self, *arguments: object, stdin: str = "") -> Told:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            given = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
            patch.setattr("sys.stdin", given)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([str(a) for a in arguments])
        return Told(code, out.getvalue(), err.getvalue())

    def train(self, folder: Path, *more: object, steps: int = 10, data: Path | None = None) -> Told:
        """Train for some steps in `folder`/run with its own cache."""
        text = data or self.corpus(folder / "data")
        return self(
            "train", "--data", text, "--run", folder / "run", "--cache", folder / "cache",
            f"training.max_steps={steps}", *SMALL, *more,
        )  # fmt: skip

    def corpus(self, folder: Path, documents: int = 60) -> Path:
        """Small different documents, the same every time."""
        folder.mkdir(parents=True, exist_ok=True)
        state = 1
        lines = []
        for _ in range(documents):
            words = []
            for _ in range(40):
                state = (state * 1103515245 + 12345) % 2147483648
                words.append(WORDS[state // 65536 % len(WORDS)])
            lines.append(json.dumps({"text": " ".join(words) + "."}))
        (folder / "text.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return folder


@pytest.fixture(scope="session")
def tool() -> Tool:
    return Tool()


@pytest.fixture(scope="session")
def finished(tool: Tool, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Told]:
    """A run of ten steps, and what was printed."""
    folder = tmp_path_factory.mktemp("finished")
    told = tool.train(folder, "--json")
    assert told.code == 0, told.err
    return folder / "run", told
