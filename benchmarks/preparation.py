"""From raw files to token shards, beside the bare tokenizer on the same text, 2 cores.

    python -m benchmarks.preparation [--sizes 10 100 1000]

The bare side has the text in memory already and calls `tokenizers.Tokenizer.encode_batch`. Ours
reads files, normalises, drops exact and near duplicates, splits, encodes and writes hashed shards.
Reach: 80 % of the bare rate, and memory that does not grow from 10 MB to 1 GB of input.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common

VOCAB_SIZE = 8192
DOCUMENT_BYTES = 2000
ROUNDS = 3


def sentences() -> list[str]:
    """Sentences of real film reviews and encyclopaedia articles."""
    pool: list[str] = []
    with gzip.open(common.SHARED_DATA / "imdb" / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for line in file:
            pool += json.loads(line)["text"].replace("<br />", " ").split(". ")
    with gzip.open(common.SHARED_DATA / "wikitext-2" / "train.txt.gz", "rt", encoding="utf-8") as f:
        pool += [s for line in f for s in line.split(" . ") if len(s) > 20]
    return [s.strip() for s in pool if 20 < len(s) < 1000]


def write_corpus(folder: Path, megabytes: int) -> None:
    """Distinct documents of about 2 kB, ten files."""
    pool, generator = sentences(), random.Random(megabytes)
    folder.mkdir()
    left = megabytes * 1_000_000
    share = left // 10
    for number in range(10):
        written = 0
        with open(folder / f"part-{number}.jsonl", "w", encoding="utf-8") as file:
            while written < share:
                text = ""
                while len(text) < DOCUMENT_BYTES:
                    text += generator.choice(pool) + ". "
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                written += len(text)


def load(tokenizer: Path) -> Any:
    from inkstone.tokenizers.tokenizer import Tokenizer

    return Tokenizer.load(tokenizer)


def bare(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """The library alone: text in memory, ids in memory, a thousand documents a call."""
    backend = load(tokenizer).backend
    texts = [
        json.loads(line)["text"]
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]
    start = time.perf_counter()
    tokens = 0
    for i in range(0, len(texts), 1000):
        for encoding in backend.encode_batch(texts[i : i + 1000]):
            tokens += len(encoding.ids)
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def ours(folder: Path, tokenizer: Path) -> dict[str, Any]:
    """Files to shards, as `inkstone train` prepares them."""
    from inkstone.corpora.config import CorpusConfig
    from inkstone.corpora.prepare import prepare
    from inkstone.text.clean import clean
    from inkstone.text.config import TextConfig
    from inkstone.text.store import DocumentStore

    opened = load(tokenizer)
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        clean(str(folder), Path(out) / "text", TextConfig())
        cleaned = time.perf_counter()
        tokens = 0
        for side in ("train", "valid"):
            store = DocumentStore(Path(out) / "text" / side)
            corpus = prepare(store, opened, Path(out) / side, CorpusConfig())
            tokens += corpus.n_tokens - corpus.n_documents
        seconds = time.perf_counter() - start
    usage = [
        resource.getrusage(w).ru_maxrss for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    ]
    return {
        "tokens": tokens, "seconds": seconds, "clean_seconds": cleaned - start,
        "peak_bytes": 1024 * max(usage),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="MB")
    sizes = parser.parse_args().sizes
    from inkstone.tokenizers.config import TokenizerConfig
    from inkstone.tokenizers.train import train

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        pool = sentences()
        train([". ".join(pool[i : i + 20]) for i in range(0, 60_000, 20)],
              TokenizerConfig(vocab_size=VOCAB_SIZE)).save(root)  # fmt: skip
        for size in sizes:
            corpus = root / f"{size}MB"
            write_corpus(corpus, size)
            rounds = ROUNDS if size <= 100 else 1
            results: dict[str, list[dict[str, Any]]] = {"bare": [], "ours": []}
            for _ in range(rounds):
                for side, found in results.items():
                    if side == "ours" or size <= 100:
                        found.append(common.child(__spec__.name, side, str(corpus), str(root)))
            row = {"input (MB)": size}
            for side, found in results.items():
                if found:
                    rate = statistics.median(r["tokens"] / r["seconds"] for r in found)
                    row[f"{side} (tokens/s)"] = rate
            if results["bare"]:
                row["ours / bare"] = row["ours (tokens/s)"] / row["bare (tokens/s)"]
            row["of which cleaning (s)"] = results["ours"][0]["clean_seconds"]
            row["peak memory (MB)"] = max(r["peak_bytes"] for r in results["ours"]) / 1e6
            rows.append(row)
            shutil.rmtree(corpus)
    common.report("preparation", rows)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in ("bare", "ours"):
        side = bare if sys.argv[1] == "bare" else ours
        print(json.dumps(side(Path(sys.argv[2]), Path(sys.argv[3]))))
    else:
        main()
