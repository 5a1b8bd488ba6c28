"""What masked-language-model pre-training of a small encoder is worth to a task with 1,000 labels.

    python -m benchmarks.mlm_imdb [--minutes 20]

The network is ModernBERT's, 128 wide, four layers: where queries and keys are turned by their
positions, attention begins to work after 150 steps; BERT's own, with a learned row for each
position (`--family bert`), had not left what single words tell after 13 minutes. Pre-training reads
WikiText-2's training part and the texts of IMDb's training part, without labels. Then, for each of
three seeds, 1,000 labelled reviews are drawn (500 of each class; a tenth of them picks the
checkpoint), and three models are fine-tuned on them: the pre-trained one; the same network and
vocabulary with fresh weights and the same settings; and fresh weights with the settings and passes
that suit training from scratch. Accuracy is over the first 2,500 reviews of each class of IMDb's
test part, which nothing else reads.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import common
from inkstone import device, pipeline, registry
from inkstone.checkpoint import load_model, save_model
from inkstone.files import complete_lines
from inkstone.recipe import load

LABELS, SEEDS = 1000, (0, 1, 2)
TITLE = re.compile(r" = [^=].*[^=] = \n")
SHAPE = ("model.d_model=128", "model.n_layers=4", "model.n_heads=4")
TUNED = {  # of the pre-trained model, and of fresh weights treated alike
    "training.lr": 5e-4, "training.epochs": 8.0, "training.minutes": 10.0,
}  # fmt: skip
SCRATCH = {"training.lr": 1e-3, "training.epochs": 20.0, "training.minutes": 10.0}


def articles() -> Iterator[str]:
    """WikiText-2's training part, article by article."""
    with gzip.open(common.SHARED_DATA / "wikitext-2" / "train.txt.gz", "rt", encoding="utf-8") as f:
        lines: list[str] = []
        for line in f:
            if TITLE.fullmatch(line) and lines:
                yield "".join(lines)
                lines = []
            lines.append(line)
        yield "".join(lines)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def of_each(rows: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first `count` rows of each label."""
    return [r for label in (0, 1) for r in [x for x in rows if x["label"] == label][:count]]


def data(root: Path, test_rows: int) -> None:
    """Texts to pre-train on, and tables to fine-tune on."""
    train = common.rows("imdb/train.jsonl.gz")
    texts = [{"text": text} for text in (*articles(), *(row["text"] for row in train))]
    write(root / "texts" / "texts.jsonl", texts)
    for seed in SEEDS:
        shuffled = random.Random(seed).sample(train, len(train))
        few = of_each(shuffled, LABELS // 2)
        random.Random(seed).shuffle(few)
        write(root / f"labels-{seed}" / "train.jsonl", few[LABELS // 10 :])
        write(root / f"labels-{seed}" / "valid.jsonl", few[: LABELS // 10])
        write(
            root / f"labels-{seed}" / "test.jsonl",
            of_each(common.rows("imdb/test.jsonl.gz"), test_rows // 2),
        )


def fresh(pretrained: Path, to: Path, seed: int) -> Path:
    """The same network and tokenizer with weights that have seen nothing."""
    model, tokenizer, _ = load_model(pretrained)
    torch.manual_seed(seed)
    family = registry.load("models", type(model).__module__.rsplit(".", 1)[-1])
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    save_model(to, family.Model(model.config), tokenizer)
    return to


def tune(root: Path, name: str, start: Path, seed: int, settings: dict[str, Any]) -> float:
    """Test accuracy after fine-tuning."""
    folder = root / f"labels-{seed}"
    values: dict[str, dict[str, Any]] = {
        "data": {"path": [str(folder / "train.jsonl")], "valid": [str(folder / "valid.jsonl")],
                 "test": [str(folder / "test.jsonl")]},
        "task": {"name": "classification", "truncate": "middle"},
        "model": {"pretrained": str(start)},
        "training": {"seed": seed},
        "corpus": {"seed": seed},
    }  # fmt: skip
    for key, value in settings.items():
        section, _, field = key.partition(".")
        values[section] = {**values.get(section, {}), field: value}
    recipe = load(None).with_values(values)
    result = pipeline.train(recipe, root / f"{name}-{seed}", cache=root / "cache")
    return float(next(s["value"] for s in result["scores"] if s["name"] == "accuracy"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--family", default="modernbert", choices=["modernbert", "bert"])
    parser.add_argument("--settings", nargs="*", default=[], help="section.key=value")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--test-rows", type=int, default=5000)
    parser.add_argument("--pretrained", type=Path, help="an earlier run, instead of a new one")
    parser.add_argument("--keep", type=Path, help="a folder for the runs")
    parser.add_argument("--tuned", type=json.loads, default={})
    parser.add_argument("--sides", nargs="+", default=["pretrained", "fresh", "scratch"])
    arguments = parser.parse_args()
    device.tune_allocator()
    torch.set_num_threads(common.THREADS)
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or Path(temporary)
        data(root, arguments.test_rows)
        run, began = arguments.pretrained, time.monotonic()
        if run is None:
            run = root / "pretrained"
            recipe = load(f"{arguments.family}-small-mlm", [*SHAPE, *arguments.settings])
            recipe = recipe.with_data([root / "texts"], arguments.minutes)
            pipeline.train(recipe, run, cache=root / "cache")
        result = json.loads((run / "result.json").read_text())
        print(json.dumps({k: result[k] for k in ("parameters", "steps", "scores")}), flush=True)
        sides = {
            "pretrained": ("pre-trained", TUNED | arguments.tuned),
            "fresh": ("fresh weights, the same settings", TUNED | arguments.tuned),
            "scratch": ("fresh weights, settings of their own", SCRATCH),
        }
        rows = []
        for side in arguments.sides:
            name, settings = sides[side]
            accuracies = []
            for seed in SEEDS[: arguments.seeds]:
                start = run / "model"
                if side != "pretrained":
                    start = fresh(start, root / "fresh" / str(seed), seed)
                at = time.monotonic()
                accuracies.append(tune(root, side, start, seed, settings))
                spent = time.monotonic() - at
                print(f"{name}, seed {seed}: {accuracies[-1]:.4f} ({spent:.0f} s)", flush=True)
            spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
            rows.append({
                "model": name, "accuracy": statistics.mean(accuracies), "deviation": spread,
                **{f"seed {s}": a for s, a in zip(SEEDS, accuracies, strict=False)},
            })  # fmt: skip
        log = [json.loads(line) for line in complete_lines(run / "log.jsonl")]
        curve = [{k: r[k] for k in ("step", "nats_per_token", "accuracy")}
                 for r in log if r.get("kind") == "eval"]  # fmt: skip
        facts = {
            "masked-token perplexity": result["scores"]["table"][0]["perplexity"],
            "masked-token accuracy": result["scores"]["table"][0]["accuracy"],
            "parameters": result["parameters"], "steps": result["steps"],
            "pre-training (s)": result["time"]["training_s"],
            "all (s)": time.monotonic() - began,
        }  # fmt: skip
    common.report("mlm_imdb", rows, **facts, curve=curve)


if __name__ == "__main__":
    main()
