"""A code model on Python's own source: next tokens, hidden lines, functions that parse, 2 threads.

    python -m benchmarks.code [--minutes 20]

It reads the standard library of the Python that runs this (without its tests and installed
packages) and the training part of shared/data/code-python (Flask, Werkzeug, Requests), and is
scored on the 17 files of the latter's test part. Beside it stands
a Kneser–Ney 5-gram on the same text and as large a vocabulary; it is asked for next tokens only.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import common
from inkstone import api, device
from inkstone.text.config import TextConfig
from inkstone.text.readers import read

APART = {"test", "tests", "idle_test", "site-packages", "dist-packages"}
VOCABULARY, LIMIT = 8192, 300
ASKED = 5000  # of the tokens, where each costs a search in the counts


def library(to: Path) -> None:
    """Copy every file of the standard library that is UTF-8 into a folder."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        if APART.isdisjoint(path.relative_to(root).parts):
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue
            copy = to / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, encoding="utf-8")


def counted(model: Any, files: list[str]) -> float:
    """Share of the tokens that an n-gram model finds likeliest."""
    right, asked = 0, 0
    every = max(1, sum(len(model.tokenizer.encode(text)) for text in files) // ASKED)
    for text in files:
        ids = np.array([model.tokenizer.eos_id, *model.tokenizer.encode(text)])
        for end in range(1, len(ids), every):
            right += int(model.model.next_probs(ids[max(0, end - 8) : end]).argmax() == ids[end])
            asked += 1
    return right / asked


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    arguments = parser.parse_args()
    device.tune_allocator()
    torch.set_num_threads(common.THREADS)
    folder = common.SHARED_DATA / "code-python"
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        library(root / "library")
        data = [str(root / "library"), str(folder / "train.jsonl.gz")]
        usual = {"text.field": "content", "text.source_code": True,
                 "tokenizer.vocab_size": VOCABULARY}  # fmt: skip
        rows = []
        for recipe in ("ngram", "code-python"):
            run, minutes = root / recipe, None if recipe == "ngram" else arguments.minutes
            model = api.train(
                recipe, data=data, minutes=minutes, run=run, settings=usual, cache=root / "cache"
            )
            began = time.perf_counter()
            test = folder / "test.jsonl.gz"
            result = json.loads((run / "result.json").read_text())
            row = {"model": recipe, "parameters": result.get("parameters"),
                   "training (s)": result["time"]["training_s"],
                   "bits per byte": model.perplexity(test).bits_per_byte}  # fmt: skip
            if recipe == "ngram":
                texts = read(test, config=TextConfig(field="content"))
                row["next token"] = counted(model, [document.text for document in texts])
            else:
                report = model.score_python(test, limit=LIMIT)
                row |= {score.name: score.value for score in report.scores}
                for wanted, written in report.lines[:12]:
                    print(f"  wanted   {wanted}\n  written  {written}\n")
                print(next((f.text for f in report.functions if f.parses), ""))
            row["scoring (s)"] = time.perf_counter() - began
            rows.append(row)
            print(row, flush=True)
    common.report("code", rows)


if __name__ == "__main__":
    main()
