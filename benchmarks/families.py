"""Every neural family as its recipe has it, at equal minutes on the same data, 2 threads.

    python -m benchmarks.families [--only NAME ...] [--minutes MINUTES]

Each row is one `inkstone train RECIPE --data …` from scratch: the program chooses size, batch and
rates from data and time, so what differs is the family and what its recipe says. Decoders read
WikiText-2 and are scored in bits per byte on held-out articles, beside a Kneser-Ney 5-gram;
encoders learn AG News' topics from 5,000 labelled texts, beside a bag of words; encoder–decoders
translate Multi30k, scored on its test of 2016 with beam search (4 beams). Rows of earlier calls are
kept in benchmarks/out, so that the tables can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import Any

from benchmarks import common

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What the families of one kind learn.

    Attributes:
        data: In the folder of real data.
        minutes: To train; 0 where the family is fitted at once.
        recipes: Family → recipe.
        settings: Beyond the recipe.
    """

    data: str
    minutes: float
    recipes: dict[str, str]
    settings: tuple[str, ...] = ()


JOBS = {
    "decoders": Job(
        "wikitext-2/train.txt.gz",
        2.0,
        {
            "ngram": "ngram", "gpt2": "gpt-small", "llama": "llama-small",
            "mixtral": "mixtral-small", "hashgram": "hashgram-small",
        },
        ("evaluation.samples=0", "evaluation.baselines=false"),
    ),
    "encoders": Job(
        "ag-news",
        1.5,
        {
            "bag_of_words": "agnews-bow", "bert": "agnews-bert", "roberta": "agnews-roberta",
            "distilbert": "agnews-distilbert", "modernbert": "agnews-modernbert",
        },
    ),
    "encoder-decoders": Job(
        "multi30k-en-de",
        2.5,
        {
            "transformer": "multi30k-transformer", "marian": "multi30k-marian",
            "bart": "multi30k-bart", "t5": "multi30k-t5", "rnn_seq2seq": "multi30k-rnn",
        },
    ),
}  # fmt: skip
FITTED = {"ngram", "bag_of_words"}


def measure(kind: str, family: str, minutes: float | None) -> Row:
    """Train one family and give its row."""
    job = JOBS[kind]
    time = [] if family in FITTED else [f"training.minutes={minutes or job.minutes}"]
    result = common.train(job.recipes[family], common.SHARED_DATA / job.data, *time, *job.settings)
    row: Row = {"family": family, "recipe": job.recipes[family]}
    for name in ("parameters", "steps"):
        row[name] = float(result[name]) if result.get(name) else ""
    row["training (s)"] = float(result["time"]["training_s"])
    return row | _scores(result)


def _scores(result: dict[str, Any]) -> Row:
    """The scores of a run's result that the table shows."""
    scores = result["scores"]
    if isinstance(scores, list):  # of a task
        return {s["name"].replace("_", " "): float(s["value"]) for s in scores}
    return {"bits per byte": float(scores["table"][0]["bits_per_byte"])}


def kept(kind: str) -> dict[str, Row]:
    """The rows of earlier calls, by family."""
    path = common.OUT / f"families-{kind}.json"
    if not path.is_file():
        return {}
    return {row["family"]: row for row in json.loads(path.read_text(encoding="utf-8"))["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    known = [name for kind, job in JOBS.items() for name in (kind, *job.recipes)]
    parser.add_argument("--only", nargs="+", choices=known, default=list(JOBS))
    parser.add_argument("--minutes", type=float, help="instead of each table's own")
    arguments = parser.parse_args()
    for kind, job in JOBS.items():
        rows = kept(kind)
        for family in job.recipes:
            if kind in arguments.only or family in arguments.only:
                rows[family] = measure(kind, family, arguments.minutes)
        common.report(f"families-{kind}", [rows[name] for name in job.recipes if name in rows])
        print()


if __name__ == "__main__":
    main()
