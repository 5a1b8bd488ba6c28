"""A GPT-3 of minutes, asked in context: accuracy with 0, 1 and 4 solved examples in the prompt.

    python -m benchmarks.few_shot train    # on the plain text of AG News (train) and WikiText-2
    python -m benchmarks.few_shot ask

A model of this size has read a millionth of what GPT-3 had: what is expected is little more than
chance, and the table says how much. No label is ever trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks import common

MINUTES = 3.0
TOPICS = ("World", "Sports", "Business", "Technology")
JOBS: dict[str, dict[str, Any]] = {
    "AG News": {"data": "ag-news", "labels": TOPICS, "template": "{text}\nTopic:", "limit": 1000},
    "AG News, minus log P(option | Answer:)": {
        "data": "ag-news", "labels": TOPICS, "template": "{text}\nTopic:", "limit": 1000,
        "by": "answer",
    },
    "SMS spam": {"data": "sms-spam", "labels": ("ham", "spam"), "template": "{text}\nKind:"},
    "PIQA": {"data": "piqa-valid/valid.jsonl", "template": "{goal}\n", "limit": 500},
    "CommonsenseQA": {"data": "commonsenseqa", "limit": 500},
    "LAMBADA": {"data": "lambada-dev", "limit": 300, "max_tokens": 6},
}  # fmt: skip


def train(folder: Path, minutes: float) -> None:
    import inkstone as ink
    from inkstone.cli.progress import observer

    names = ("ag-news/train.jsonl.gz", "wikitext-2/train.txt.gz")
    ink.train(
        "gpt3-tiny", data=[common.SHARED_DATA / name for name in names], minutes=minutes,
        run=folder / "gpt3", cache=folder / "cache", observer=observer(quiet=False),
    )  # fmt: skip


def ask(folder: Path) -> None:
    import inkstone as ink

    model = ink.load(folder / "gpt3")
    rows = []
    for name, job in JOBS.items():
        settings = dict(job)
        path = common.SHARED_DATA / settings.pop("data")
        for report in model.few_shot(path, shots=(0, 1, 4), **settings):
            chance = "–" if report.chance is None else f"{100 * report.chance:.1f}"
            rows.append({
                "task": name, "shots": report.shots, "accuracy": report.accuracy.shown,
                "chance": chance, "majority": f"{100 * report.majority:.1f}",
                "questions": report.examples, "shown": f"{report.shown:.1f}",
            })  # fmt: skip
            print(rows[-1], flush=True)
    common.report("few_shot", rows, parameters=model.n_parameters)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("train", "ask"))
    parser.add_argument("--folder", type=Path, default=common.OUT / "gpt3")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "ask":
        ask(arguments.folder)
    else:
        train(arguments.folder, arguments.minutes)


if __name__ == "__main__":
    main()
