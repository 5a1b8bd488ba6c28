"""kill -9 at random moments, resume, and compare with the run that was never killed, to the bit.

Each worker is a process of its own that trains a small GPT-2 with dropout (so the random generators
matter), packed documents, Muon, evaluations and a checkpoint every few steps, so that many kills
hit a save. It is killed after a random time, at start-up, between steps, within an evaluation or a
save, and started again until the run is finished; then a new run begins. Losses and final weights
must equal those of a worker that was left alone.

    python -m benchmarks.prove_resume --kills 200
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT

STEPS = 120


def train(root: Path, run: str) -> None:
    """One worker: train root/run to its end, or continue it."""
    import torch

    from inkstone.checkpoint import save_model
    from inkstone.corpora.batches import BatchStream, windows
    from inkstone.corpora.shards import Corpus
    from inkstone.models import gpt2
    from inkstone.tasks import language_modeling
    from inkstone.training.config import TrainingConfig
    from inkstone.training.loop import Trainer

    torch.set_num_threads(1)
    torch.manual_seed(1)
    shape = {"d_model": 64, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}
    model = gpt2.Model(gpt2.Config(vocab_size=256, dropout=0.1, **shape))
    model.compute_dtype = torch.bfloat16  # so that the compiled kernels take part
    corpus = Corpus(root / "corpus")
    folder = root / run
    folder.mkdir(exist_ok=True)
    config = TrainingConfig(
        max_steps=STEPS, micro_batch_size=4, warmup_steps=5, log_every=1, eval_every=6,
        save_every=4,
    )  # fmt: skip

    def evaluate() -> dict[str, float]:
        batches = windows(corpus, 64, max_tokens=2000)
        return {"nats_per_token": language_modeling.evaluate(model, batches).nats_per_token}

    Trainer(
        model,
        BatchStream(corpus, batch_size=8, seq_len=64, seed=3, mask_documents=True),
        config,
        folder,
        save_model=lambda target: save_model(target, model, None),
        evaluate=evaluate,
    ).run()


def prepare(root: Path) -> None:
    """A corpus of our own source files, a byte a token."""
    import numpy as np

    from inkstone.corpora.shards import ShardWriter

    (root / "corpus").mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(root / "corpus", vocab_size=256, eos_id=0, shard_tokens=1 << 16)
    total = 0
    for path in sorted((ROOT / "inkstone").rglob("*.py"))[:40]:
        ids = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int64)
        total += len(ids)
        writer.write(ids, np.array([0, len(ids)]))
    writer.finish(tokenizer="bytes", n_bytes=total)


def worker(root: Path, run: str) -> subprocess.Popen[bytes]:
    """Start one process that trains root/run."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.prove_resume", "--worker", str(root), run],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
    )  # fmt: skip


def outcome(run: Path) -> tuple[list[tuple[int, float]], str]:
    """Every logged loss, and the hash of the final weights and optimizer state."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [(row["step"], row["loss"]) for row in rows if row["kind"] == "step"]
    last = run / "checkpoints" / f"step-{STEPS:08d}"
    digest = hashlib.sha256()
    for name in ("model.safetensors", "training/optimizer.safetensors"):
        digest.update((last / name).read_bytes())
    return losses, digest.hexdigest()


def prove(root: Path, kills: int, seed: int = 0, parallel: int = 2) -> dict[str, Any]:
    """Kill `kills` workers at random moments.

    Returns:
        Runs, kills, kills that hit before the first step, and runs that differed (want: 0).
    """
    prepare(root)
    began = time.monotonic()
    unbroken = worker(root, "unbroken")
    _, err = unbroken.communicate()
    if unbroken.returncode:
        sys.exit(err.decode())
    whole_s = time.monotonic() - began
    reference = outcome(root / "unbroken")
    dice = random.Random(seed)
    facts = {"kills": 0, "runs": 0, "different": 0, "unbroken_s": round(whole_s, 2)}
    lanes: list[tuple[str, subprocess.Popen[bytes], float]] = []

    def start(run: str) -> None:
        patience = dice.uniform(0.1, 1.2) * whole_s
        lanes.append((run, worker(root, run), time.monotonic() + patience))

    for lane in range(parallel):
        start(f"run-{lane}")
    named = parallel
    while lanes:
        run, process, deadline = lanes.pop(0)
        try:
            _, err = process.communicate(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            facts["kills"] += 1
            print(f"\r{facts['kills']}/{kills} kills", end="", file=sys.stderr, flush=True)
            start(run)
            continue
        if process.returncode:
            sys.exit(f"a resumed run failed:\n{err.decode()}")
        facts["runs"] += 1
        facts["different"] += outcome(root / run) != reference
        if facts["kills"] < kills:
            start(f"run-{named}")
            named += 1
    print(file=sys.stderr)
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worker", nargs=2, metavar=("ROOT", "RUN"))
    arguments = parser.parse_args()
    if arguments.worker:
        train(Path(arguments.worker[0]), arguments.worker[1])
        return
    with tempfile.TemporaryDirectory() as root:
        facts = prove(Path(root) / "proof", arguments.kills, arguments.seed)
    text = json.dumps(facts, indent=1) + "\n"
    print(text, end="")
    out = ROOT / "docs" / "proofs"
    out.mkdir(parents=True, exist_ok=True)
    (out / "resume.json").write_text(text, encoding="utf-8")
    if facts["different"]:
        sys.exit(f"{facts['different']} runs differ from the unbroken one")


if __name__ == "__main__":
    main()
