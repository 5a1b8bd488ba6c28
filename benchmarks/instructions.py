"""From plain text to a model that answers, in minutes: perplexity of held-out answers, preferences.

    python -m benchmarks.instructions base en       # pre-training on WikiText-2
    python -m benchmarks.instructions base zh       # … on CMRC 2018's paragraphs and hotel reviews
    python -m benchmarks.instructions tune en       # fine-tuning on 999 Alpaca records
    python -m benchmarks.instructions tune zh       # … on 20,454 Chinese ones
    python -m benchmarks.instructions replay en     # the same with a fifth of plain text
    python -m benchmarks.instructions lora en       # the same with adapters of rank 16 alone
    python -m benchmarks.instructions prefer en     # DPO on 300 pairs, after fine-tuning
    python -m benchmarks.instructions score         # the table of what was run

"answers" is the perplexity of held-out answers and their ends, "text" that of plain text that the
base was not trained on, each before training and after. "pairs" is the share of held-out pairs of
which the chosen answer gains more probability over the reference than the rejected one, "margin"
the mean difference of those gains in nats times β; before training both models are the same, which
gives 50 % and 0.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks import common

DATA = common.SHARED_DATA
MINUTES = {"base": 5.0, "tune": 4.0, "replay": 4.0, "lora": 4.0, "prefer": 3.0}  # at most
TALKS = {"en": "instruct-demos/alpaca_en.jsonl.gz", "zh": "alpaca-zh/all.jsonl.gz"}
HELD = {"en": "wikitext-2/valid.txt", "zh": "chnsenticorp-htl/test.jsonl"}
SHAPE = {"corpus.seq_len": 512, "tokenizer.vocab_size": 4096, "model.d_model": 256,
         "model.n_layers": 4, "model.n_heads": 4, "training.tokens_per_step": 4096,
         "training.max_steps": 500}  # fmt: skip


def text(folder: Path, language: str) -> list[Path]:
    """Plain text to begin with."""
    if language == "en":
        return [DATA / "wikitext-2" / "train.txt.gz"]
    path = folder / "paragraphs.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for paragraph in dict.fromkeys(
            row["context"] for row in common.rows("cmrc2018-dev/dev.jsonl.gz")
        ):
            file.write(json.dumps({"text": paragraph}, ensure_ascii=False) + "\n")
    return [path, DATA / "chnsenticorp-htl" / "train.jsonl.gz"]


def train(folder: Path, stage: str, language: str, minutes: float) -> None:
    import inkstone as ink
    from inkstone.cli.progress import observer

    settings: dict[str, Any] = {}
    data: list[Path] = [DATA / TALKS[language]]
    if stage == "base":
        data, settings = text(folder, language), dict(SHAPE)
    elif stage == "prefer":
        data = [DATA / "instruct-demos" / f"dpo_{language}.jsonl.gz"]
        settings = {"task.name": "preferences", "text.valid_fraction": 0.2,
                    "model.pretrained": str(folder / f"tune-{language}")}  # fmt: skip
    else:
        settings = {"task.name": "instructions", "text.valid_fraction": 0.1,
                    "model.pretrained": str(folder / f"base-{language}"),
                    "evaluation.remember": [str(DATA / HELD[language])]}  # fmt: skip
    if stage == "replay":
        settings |= {"data.replay": [str(p) for p in text(folder, language)],
                     "data.replay_share": 0.2}  # fmt: skip
    if stage == "lora":
        settings |= {"lora.rank": 16}
    ink.train(
        data=data, minutes=minutes, run=folder / f"{stage}-{language}", cache=folder / "cache",
        settings=settings, observer=observer(quiet=False),
    )  # fmt: skip


def score(folder: Path) -> None:
    from inkstone.evaluation.scores import Score

    rows = []
    for path in sorted(folder.glob("*/result.json")):
        stage, _, language = path.parent.name.partition("-")
        result = json.loads(path.read_text(encoding="utf-8"))
        row = {"stage": stage, "language": language, "parameters": f"{result['parameters']:,}",
               "training": f"{result['time']['training_s'] / 60:.1f} min"}  # fmt: skip
        if stage == "base":
            row["text"] = f"{result['scores']['table'][0]['perplexity']:.1f}"
        else:
            names = {"perplexity": "answers", "margin": "margin", "preference_accuracy": "pairs"}
            row["held out"] = str(result["examples"])
            for found in (Score(**x) for x in result["scores"] if x["name"] in names):
                before = result["baseline"].get(found.name)
                start = "" if before is None else f"{found.scale * before:.2f} → "
                row[names[found.name]] = start + found.shown
            if result["remembered"]:
                row["text"] = " → ".join(f"{x['perplexity']:.1f}" for x in result["remembered"])
        rows.append(row)
    columns = ["stage", "language", "parameters", "training", "held out", "answers", "text",
               "pairs", "margin"]  # fmt: skip
    common.report("instructions", [{c: row.get(c, "–") for c in columns} for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("stage", choices=[*MINUTES, "score"])
    parser.add_argument("language", choices=list(TALKS), nargs="?", default="en")
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--folder", type=Path, default=common.OUT / "instructions")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.stage == "score":
        score(arguments.folder)
        return
    minutes = arguments.minutes or MINUTES[arguments.stage]
    train(arguments.folder, arguments.stage, arguments.language, minutes)


if __name__ == "__main__":
    main()
