"""What every way to make a model small costs, on real text and real labels, 2 threads.

    python -m benchmarks.compression [--minutes M] [--model-minutes N] [--only NAME]

Two models are trained for N minutes each: a Llama-shaped one of six layers on the first nine tenths
of Tiny Shakespeare, and a BERT of four on AG News. Each is then compressed in every way, by the
command that a user would type. Where a way needs training it gets M minutes. The last tenth of the
plays and the official test of AG News are scored before and after; speed is that of one answer
(tokens) or of the whole test (examples). "alone" is the student of the row above it without a
teacher, in the same minutes: what distilling is worth is the difference.
With M = 1 and N = 3 it takes about 25 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import common

HELD_OUT = 0.1
PLAYS = (
    "model.family=llama", "model.n_layers=6", "model.d_model=192", "model.n_heads=6",
    "tokenizer.vocab_size=1024", "corpus.seq_len=256", "evaluation.baselines=false",
)  # fmt: skip
NEWS = ("model.n_layers=4", "model.d_model=256", "model.n_heads=4")
ROUNDED: tuple[tuple[str, ...], ...] = tuple(("--to", to) for to in ("bf16", "int8", "fp8", "int4"))
STUDENT = {"plays": ("model.n_layers=3",), "news": ("model.n_layers=2", "model.d_model=128")}
ALONE = ("--set", "distill.alpha=1", "--set", "distill.beta=0")


def ways(model: str, minutes: float) -> Iterator[tuple[str, tuple[str, ...]]]:
    """What is done to a model: what it is called, and the options of `inkstone compress`."""
    train = ("--minutes", str(minutes))
    for to in ROUNDED:
        yield to[1], to
    half = ("--prune", "0.5")
    yield "half zeros, at once", half
    yield "half zeros", (*half, *train)
    yield "half zeros by movement", (*half, "--prune-by", "movement", *train)
    yield "2:4", (*half, "--prune-by", "2:4", *train)
    yield "half zeros, int8", (*half, "--to", "int8", *train)
    if model == "plays":
        yield "half the heads", (*half, "--prune-by", "heads", *train)
    yield "half the layers", (*half, "--prune-by", "layers", *train)
    shape = tuple(word for setting in STUDENT[model] for word in ("--distill", setting))
    yield "student", (*shape, *train)
    yield "student, alone", (*shape, *train, *ALONE)


def compress(run: Path, out: Path, data: Path, held_out: Path, options: tuple[str, ...]) -> Any:
    """What `inkstone compress` tells."""
    command = [
        sys.executable, "-m", "inkstone", "compress", str(run), *options, "--data", str(data),
        "--eval", str(held_out), "--out", str(out), "--json", "--quiet",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(common.THREADS)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def rows_of(model: str, run: Path, data: Path, held_out: Path, minutes: float) -> Iterator[Any]:
    """One row of the table for each way, the model as it is ahead of them."""
    for number, (name, options) in enumerate(ways(model, minutes)):
        told = compress(run, run.parent / f"{model}-{number}", data, held_out, options)
        facts = {name: told["after"]}
        if not number:
            facts = {"as it is": told["before"], **facts}
        for what, found in facts.items():
            score, value = next(iter(found["scores"].items()))
            trained = told["shrunk"].get("trained") if what == name else None
            yield {
                "model": model, "way": what, "MB on disk": found["disk_bytes"] / 1e6,
                "MB in memory": found["memory_bytes"] / 1e6, "weights": f"{found['parameters']:,}",
                "zeros": f"{found['zeros']:.0%}", "speed": f"{found['speed']:,.0f}",
                "unit": found["speed_unit"], "score": f"{score} {value:.2f}",
                "trained": f"{trained['seconds']:.0f} s" if trained else "",
            }  # fmt: skip
            print(what, f"{score} {value:.2f}", file=sys.stderr, flush=True)


def plays(folder: Path) -> tuple[Path, Path]:
    """Tiny Shakespeare: what is trained on, and what is scored."""
    text = (common.SHARED_DATA / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    cut = text.index("\n\n", round((1 - HELD_OUT) * len(text)))
    parts = folder / "plays.txt", folder / "held-out.txt"
    for path, part in zip(parts, (text[:cut], text[cut:]), strict=True):
        path.write_text(part, encoding="utf-8")
    return parts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--model-minutes", type=float, default=3.0)
    parser.add_argument("--only", choices=STUDENT)
    given = parser.parse_args()
    news = common.SHARED_DATA / "ag-news"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        jobs = {
            "plays": ("gpt-small", *plays(folder), PLAYS),
            "news": ("agnews-bert", news / "train.jsonl.gz", news / "test.jsonl.gz", NEWS),
        }
        for name, (recipe, data, held_out, settings) in jobs.items():
            if given.only in (None, name):
                run, length = folder / f"{name}-run", f"training.minutes={given.model_minutes}"
                common.train(recipe, data, *settings, length, run=run)
                rows += rows_of(name, run, data, held_out, given.minutes)
    common.report("compression", rows, minutes=given.minutes, model_minutes=given.model_minutes)


if __name__ == "__main__":
    main()
