"""What other programs make of exported models: ids, logits, predictions, vectors.

Real weights (a Llama of 260 thousand parameters, MiniLM) and tokenizers trained here are exported;
llama.cpp then encodes real English, Chinese and code, and computes what our fp32 network computes.

    python -m benchmarks.prove_export
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import ROOT, SHARED_DATA, minilm, rows
from benchmarks.llama_cpp import Opened
from inkstone import api
from inkstone.compression.export import Source, export
from inkstone.models import gpt2
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TYPES = ("f16", "bf16", "q8_0", "q4_0")


def texts(n: int = 1000) -> dict[str, list[str]]:
    """Of each kind at most `n`."""
    with gzip.open(SHARED_DATA / "wikitext-2" / "train.txt.gz", "rt", encoding="utf-8") as file:
        lines = [line for line, _ in zip(file, range(3 * n), strict=False) if line.strip()]
    return {
        "AG News": [row["text"] for row in rows("ag-news/test.jsonl.gz")][:n],
        "WikiText-2": lines[:n],
        "hotel reviews, Chinese": [row["text"] for row in rows("chnsenticorp-htl/train.jsonl.gz")][
            :n
        ],
    }


def trained(pattern: str, corpus: dict[str, list[str]]) -> Tokenizer:
    settings = TokenizerConfig.model_validate({"pattern": pattern, "vocab_size": 4000})
    return train([text for kind in corpus.values() for text in kind], settings)


def ids(there: Opened, words: Tokenizer, corpus: dict[str, list[str]]) -> dict[str, Any]:
    """How many texts get other ids there."""
    facts = {}
    for name, kind in corpus.items():
        ours = [words.encode(text) for text in kind]
        different = sum(there.encode(t) != i for t, i in zip(kind, ours, strict=True))
        facts[name] = {"texts": len(kind), "tokens": sum(map(len, ours)), "different": different}
    return facts


def predictions(model: Any, folder: Path) -> dict[str, Any]:
    """Logits and nats a token on 500 tokens of TinyStories."""
    path = SHARED_DATA / "tinystories-sample" / "tinystories.txt"
    with path.open(encoding="utf-8") as file:
        text = file.read(4000)
    read = [model.tokenizer.bos_id, *model.tokenizer.encode(text)][:500]
    with torch.no_grad():
        ours = model.model(torch.tensor([read]))[0].numpy()
    facts: dict[str, Any] = {"ours, fp32": {"nats_per_token": _loss(ours, read)}}
    for kind in TYPES:
        done = model.export(folder / f"{kind}.gguf", "gguf", kind=kind)
        found = Opened(done.path).logits(read)
        facts[kind] = {
            "bytes": done.n_bytes,
            "nats_per_token": _loss(found, read),
            "largest_logit": round(float(np.abs(ours).max()), 2),
            "max_difference": round(float(np.abs(found - ours).max()), 4),
            "same_first_choice": round(float((found.argmax(1) == ours.argmax(1)).mean()), 4),
        }
    return facts


def _loss(logits: Any, read: Sequence[int]) -> float:
    scores = torch.from_numpy(logits[:-1]).float()
    return round(float(torch.nn.functional.cross_entropy(scores, torch.tensor(read[1:]))), 4)


def vectors(model: Any, folder: Path, n: int = 50) -> dict[str, Any]:
    """Cosines between llama.cpp's vectors of texts and ours."""
    kind_texts = [row["text"] for row in rows("ag-news/test.jsonl.gz")][:n]
    ours, facts = model.embed(kind_texts), {}
    for kind in TYPES:
        done = model.export(folder / f"minilm-{kind}.gguf", "gguf", kind=kind)
        there = Opened(done.path)
        means = [there.states(there.encode(t, framed=True)[:256]).mean(0) for t in kind_texts]
        norms = [
            float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in zip(means, ours, strict=True)
        ]
        cosines = [float(a @ b) / n for a, b, n in zip(means, ours, norms, strict=True)]
        facts[kind] = {"bytes": done.n_bytes, "lowest_cosine": round(float(cosines.min()), 5)}
    return facts


def main() -> None:
    corpus, facts = texts(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts["ids"] = {}
        for pattern in ("modern", "gpt2"):
            words = trained(pattern, corpus)
            shape = gpt2.Config(vocab_size=words.vocab_size, d_model=32, n_layers=1, n_heads=1)
            source = Source(folder / "model", gpt2.Model(shape), words)
            done = export(source, folder / f"{pattern}.gguf", "gguf")
            facts["ids"][f"byte-level BPE, {pattern}"] = ids(Opened(done.path), words, corpus)
            _say(f"ids, {pattern}")
        data = SHARED_DATA / "checkpoints"
        stories = api.import_model(
            data / "stories260K.bin", folder / "stories", tokenizer=data / "tok512.bin"
        )
        facts["stories260K"] = predictions(stories, folder)
        there = Opened(folder / "f16.gguf")
        facts["ids"]["SentencePiece BPE, stories260K"] = ids(there, stories.tokenizer, corpus)
        done = stories.export(folder / "stories-onnx", "onnx")
        facts["stories260K"]["onnx"] = {"max_difference": done.facts["max_difference"]}
        _say("stories260K")
        encoder = api.load(minilm(), device="cpu")
        facts["MiniLM"] = vectors(encoder, folder)
        there = Opened(folder / "minilm-f16.gguf")
        facts["ids"]["WordPiece, MiniLM"] = ids(there, encoder.tokenizer, corpus)
        done = encoder.export(folder / "minilm-onnx", "onnx")
        facts["MiniLM"]["onnx"] = {"max_difference": done.facts["max_difference"]}
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    print(text, end="")
    (ROOT / "docs" / "proofs" / "export.json").write_text(text, encoding="utf-8")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
