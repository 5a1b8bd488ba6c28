"""English captions into German by a small Transformer, 4 beams: Inkstone beside CTranslate2.

    python -m benchmarks.translating [--rounds N] [--minutes M]

The model is `inkstone train multi30k-transformer` of Multi30k's captions, M minutes of it (kept in
benchmarks/out). The job is the official test set of 2016, 1,000 captions, once all together and
once one by one (the first 200). Both sides have the same weights in 8 bits, ours by
`inkstone compress`' rounding, CTranslate2 by its own of our export; both search with 4 beams and
the same length penalty until 4 texts are complete. Every side is a process of its own on 2 threads
and times the search alone, from token ids to token ids; CTranslate2 is asked in several shapes,
and its best counts.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common

BEAMS, PENALTY, LONGEST = 4, 1.0, 36
ALONE = 200  # captions that are translated one by one
PEERS = ("2x1 32", "2x1 128", "1x2 256")  # CTranslate2: workers x threads, captions of a batch
Translate = Callable[[list[list[int]]], list[list[int]]]


def captions() -> list[tuple[str, str]]:
    """English and German."""
    return [(row["en"], row["de"]) for row in common.rows("multi30k-en-de/test_2016_flickr.jsonl")]


def ours(folder: Path) -> tuple[Translate, Translate]:
    """All together, and one by one."""
    import torch

    from inkstone.checkpoint import load_model
    from inkstone.corpora.examples import in_batches
    from inkstone.inference.beam import BeamConfig, translate
    from inkstone.inference.predict import TOKENS_AT_ONCE

    model, tokenizer, _ = load_model(folder / "int8")
    assert tokenizer is not None
    end = tokenizer.eos_id
    config = BeamConfig(
        n_beams=BEAMS, length_penalty=PENALTY, max_tokens=LONGEST, early_stopping=True
    )

    def together(rows: list[list[int]]) -> list[list[int]]:
        import numpy as np

        out: list[list[int]] = [[]] * len(rows)
        lengths = np.array([[len(row)] for row in rows])
        for numbers in in_batches(lengths, TOKENS_AT_ONCE):
            width = int(lengths[numbers].max())
            ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in numbers])
            mask = torch.arange(width) < torch.tensor(lengths[numbers])
            for i, found in zip(numbers, translate(model, ids, mask, config, {end}), strict=True):
                out[i] = [token for token in found[0].ids if token != end]
        return out

    return together, together


def ctranslate2(folder: Path, shape: str) -> tuple[Translate, Translate]:
    """The same by CTranslate2."""
    import ctranslate2 as library

    from inkstone.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder / "int8")
    names = [tokenizer.backend.id_to_token(i) for i in range(tokenizer.vocab_size)]
    number = {name: i for i, name in enumerate(names)}
    workers, threads, batch = (int(number) for number in re.split("[x ]", shape))
    translator = library.Translator(
        str(folder / "ct2"), device="cpu", compute_type="int8", inter_threads=workers,
        intra_threads=threads,
    )  # fmt: skip

    def run(rows: list[list[int]]) -> list[list[int]]:
        found = translator.translate_batch(
            [[names[i] for i in row[:-1]] for row in rows],  # it adds the end itself
            beam_size=BEAMS, length_penalty=PENALTY, max_decoding_length=LONGEST,
            max_batch_size=batch,
        )  # fmt: skip
        return [[number[name] for name in one.hypotheses[0]] for one in found]

    return run, run


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Captions a second both ways, and BLEU."""
    import sacrebleu

    from inkstone.tokenizers.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder / "int8")
    pairs = captions()
    sources = tokenizer.encode_batch([en for en, _ in pairs])
    rows = [[*ids[:LONGEST], tokenizer.eos_id] for ids in sources]
    name, _, shape = side.partition(" ")
    together, alone = ours(folder) if name == "inkstone" else ctranslate2(folder, shape)
    found = together(rows)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        together(rows)
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    for row in rows[:ALONE]:
        alone([row])
    single = time.perf_counter() - began
    texts = [tokenizer.decode(ids) for ids in found]
    bleu = sacrebleu.corpus_bleu(texts, [[de for _, de in pairs]]).score
    return {
        "together": len(rows) / statistics.median(times), "alone": ALONE / single, "bleu": bleu,
        "ids": found,
    }  # fmt: skip


def prepare(folder: Path, minutes: float) -> None:
    """The trained model in 8 bits, ours and theirs."""
    from inkstone import api
    from inkstone.checkpoint import load_model, save_model
    from inkstone.compression.quantize import choose, quantize_model

    run = common.OUT / f"en-de-{minutes:g}"
    if not (run / "result.json").is_file():
        common.train(
            "multi30k-transformer", common.SHARED_DATA / "multi30k-en-de",
            f"training.minutes={minutes:g}", run=run,
        )  # fmt: skip
    model, tokenizer, info = load_model(run / "model")
    (folder / "int8").mkdir()
    small = quantize_model(model, choose(model, 8))
    known = {k: v for k, v in info.items() if k not in ("format", "inkstone", "torch")}
    save_model(folder / "int8", small, tokenizer, info=known)
    api.load(run, device="cpu").export(folder / "ct2", "ctranslate2", kind="int8")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--side", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(measure(given.side[0], Path(given.side[1]))))
        return
    sides = ["inkstone", *(f"ctranslate2 {shape}" for shape in PEERS)]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), given.minutes)
        for _ in range(given.rounds):
            for side in sides:
                run = common.child("benchmarks.translating", "--side", side, name)
                found[side].append(run)
                shown = {k: v for k, v in run.items() if k != "ids"}
                print(side, shown, file=sys.stderr, flush=True)
    rows = []
    for way in ("together", "alone"):
        rates = {side: statistics.median(run[way] for run in runs) for side, runs in found.items()}
        best = max(rate for side, rate in rates.items() if side != "inkstone")
        for side, rate in rates.items():
            row: dict[str, Any] = {"captions": way, "side": side, "captions/s": rate}
            rows.append(row | {"BLEU": found[side][0]["bleu"], "ratio to the peer": rate / best})
    mine, theirs = (found[side][0].pop("ids") for side in sides[:2])
    same = sum(a == b for a, b in zip(mine, theirs, strict=True)) / len(mine)
    common.report("translating", rows, same_texts=same)


if __name__ == "__main__":
    main()
