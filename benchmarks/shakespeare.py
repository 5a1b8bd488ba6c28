"""Character Shakespeare beside nanoGPT's published CPU setting, 2 threads.

    python -m benchmarks.shakespeare --nanogpt PATH_TO_A_CHECKOUT [--five-minutes]

nanoGPT runs the command of its README (4 layers, 128 wide, 64 characters, 2,000 steps). Both sides
are timed from the start of the process, imports and data preparation included, and scored on the
whole held-out tenth in separate windows of 64 characters. Reach: 1.88 nats per character in a
sixth of nanoGPT's time. `--five-minutes` then shows what five minutes buy, with 256 characters of
context as in nanoGPT's GPU run (1.4697).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

TEXT = common.SHARED_DATA / "tinyshakespeare" / "input.txt"
NANOGPT = [
    "config/train_shakespeare_char.py",
    "--device=cpu",
    "--compile=False",
    "--eval_iters=20",
    "--log_interval=100",
    "--block_size=64",
    "--batch_size=12",
    "--n_layer=4",
    "--n_head=4",
    "--n_embd=128",
    "--max_iters=2000",
    "--lr_decay_iters=2000",
    "--dropout=0.0",
    "--always_save_checkpoint=True",
]
PREPARE = """
import runpy, sys, types
sys.modules["requests"] = types.ModuleType("requests")  # the text is there: nothing is fetched
runpy.run_path("prepare.py")
"""
SCORE = """
import sys, numpy as np, torch
sys.path.insert(0, ".")
from model import GPT, GPTConfig
torch.set_num_threads(2)
saved = torch.load(sys.argv[1] + "/ckpt.pt", map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict(saved["model"])
model.eval()
ids = torch.from_numpy(np.fromfile("data/shakespeare_char/val.bin", np.uint16).astype(np.int64))
n = (len(ids) - 1) // 64
x, y = ids[: n * 64].view(n, 64), ids[1 : n * 64 + 1].view(n, 64)
with torch.no_grad():
    parts = [(x[i : i + 128], y[i : i + 128]) for i in range(0, n, 128)]
    total = sum(float(model(a, b)[1]) * a.numel() for a, b in parts)
print(total / (n * 64))
"""
# the shapes and rates that a few short trials settled on
FAST: dict[str, Any] = {
    "seconds": 4.0, "context": 64, "rows": 32, "lr": 0.1, "matrix_lr": 0.02,
    "shape": {"d_model": 128, "n_layers": 1, "n_heads": 2, "d_ff": 512, "ngram_order": 4},
}  # fmt: skip
FIVE_MINUTES: dict[str, Any] = {
    "seconds": 290.0, "context": 256, "rows": 16, "lr": 0.03, "matrix_lr": 0.02,
    "shape": {"d_model": 256, "n_layers": 4, "n_heads": 4, "d_ff": 768, "ngram_order": 3},
}  # fmt: skip


def ours(setting: dict[str, Any]) -> None:
    """Characters to a trained model, in this process; prints the score."""
    import numpy as np
    import torch

    from inkstone import device
    from inkstone.checkpoint import save_model
    from inkstone.corpora.batches import BatchStream, windows
    from inkstone.corpora.shards import Corpus, ShardWriter
    from inkstone.models import hashgram
    from inkstone.tasks import language_modeling
    from inkstone.training.config import TrainingConfig
    from inkstone.training.loop import Trainer

    device.tune_allocator()
    torch.set_num_threads(common.THREADS)
    text = TEXT.read_text(encoding="ascii")
    letters = {c: i for i, c in enumerate(sorted(set(text)))}
    ids = np.array([letters[c] for c in text], np.uint16)
    cut = int(len(ids) * 0.9)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        corpora = {}
        for name, part in (("train", ids[:cut]), ("valid", ids[cut:])):
            (root / name).mkdir()
            # one document, its end-of-text left out of what is scored
            writer = ShardWriter(root / name, vocab_size=66, eos_id=65, shard_tokens=2**22)
            writer.write(part, np.array([0, len(part)]))
            writer.finish(tokenizer="characters", n_bytes=len(part))
            corpora[name] = Corpus(root / name)
        torch.manual_seed(0)
        config = hashgram.Config(
            vocab_size=66, max_seq_len=setting["context"], qk_norm=True, **setting["shape"]
        )
        model = hashgram.Model(config)
        model.compute_dtype = device.training_dtype("cpu")
        context = setting["context"]

        def score() -> dict[str, float]:
            held = windows(
                corpora["valid"], context, batch_size=8192 // context, max_tokens=len(ids) - cut - 1
            )
            report = language_modeling.evaluate(model, held)
            return {"nats_per_token": report.nats_per_token}

        long = setting["seconds"] > 60
        training = TrainingConfig(
            minutes=setting["seconds"] / 60, micro_batch_size=setting["rows"],
            lr=setting["lr"], matrix_lr=setting["matrix_lr"], weight_decay=0.0, warmup_steps=10,
            decay_fraction=0.6, eval_every=200 if long else None,
        )  # fmt: skip
        (root / "run").mkdir()
        stream = BatchStream(corpora["train"], batch_size=setting["rows"], seq_len=context, seed=1)
        trainer = Trainer(
            model, stream, training, root / "run",
            save_model=lambda folder: save_model(folder, model, None), evaluate=score,
        )  # fmt: skip
        result = trainer.run()
        print(
            json.dumps({"loss": result.best_score, "steps": result.step, "tokens": result.tokens})
        )


def timed(command: list[str], **options: Any) -> tuple[float, str]:
    """Seconds from start to end of a process, and its stdout."""
    environment = os.environ | {"OMP_NUM_THREADS": str(common.THREADS)}
    start = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, **options)
    if done.returncode:
        sys.exit(f"{command[1:3]} failed with exit code {done.returncode}")
    return time.perf_counter() - start, done.stdout


def nanogpt(checkout: Path) -> dict[str, Any]:
    """Its own command, its own preparation."""
    folder = checkout / "data" / "shakespeare_char"
    (folder / "input.txt").write_bytes(TEXT.read_bytes())
    subprocess.run(
        [sys.executable, "-c", PREPARE], cwd=folder, check=True, stdout=subprocess.DEVNULL
    )
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "train.py", *NANOGPT, f"--out_dir={out}"]
        seconds, _ = timed(command, cwd=checkout)
        _, printed = timed([sys.executable, "-c", SCORE, out], cwd=checkout)
    return {"side": "nanoGPT", "seconds": seconds, "nats per character": float(printed.split()[-1])}


def mine(name: str) -> dict[str, Any]:
    seconds, printed = timed(
        [sys.executable, "-m", "benchmarks.shakespeare", name], cwd=common.ROOT
    )
    result = json.loads(printed.strip().splitlines()[-1])
    return {"side": f"Inkstone ({name})", "seconds": seconds, "nats per character": result["loss"]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nanogpt", type=Path)
    parser.add_argument("--five-minutes", action="store_true")
    arguments = parser.parse_args()
    rows = [mine("fast")]
    if arguments.nanogpt:
        rows.insert(0, nanogpt(arguments.nanogpt))
    facts = {}
    if arguments.nanogpt:
        facts["time ratio"] = rows[0]["seconds"] / rows[1]["seconds"]
    if arguments.five_minutes:
        rows.append(mine("five-minutes"))
    common.report("shakespeare", rows, **facts)


if __name__ == "__main__":
    if sys.argv[1:] in (["fast"], ["five-minutes"]):
        ours(FAST if sys.argv[1] == "fast" else FIVE_MINUTES)
    else:
        main()
