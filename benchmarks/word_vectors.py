"""Word vectors beside Gensim and the authors' GloVe: text8-head, equal settings, 3 seeds.

    python -m benchmarks.word_vectors [--glove PATH_TO_A_BUILT_CHECKOUT] [--only cbow]

Word2Vec: skip-gram and CBOW with negative sampling at the defaults that both sides share (100
numbers, window 5, 5 noise words, t = 0.001, words seen 5 times, 5 epochs); Gensim draws the noise
words anew for every pair of words, we for every window. Gensim reads a file of
lines of 10,000 words (`corpus_file`), its faster way, in which the learning rate does not fall as
set: each thread divides the lines that it has read by those of all threads, so with two threads
the rate runs back at every epoch and ends at a tenth of its start. Hence it reads lists of words as
well, where the rate falls as ours does: compare speed with the first and scores with the second.
Words a second are those of the raw text, of training alone: vocabulary and compilation are outside.
fastText: skip-gram with pieces of 3 to 6 characters in 2,000,000 buckets, t = 0.0001, rate 0.05, as
its authors have it, beside Gensim's.
GloVe: the programs of stanfordnlp/GloVe, after `make`; 100 numbers, window 10, x_max 10, 25 passes;
time is that of training, which on their side reads and writes files. Two threads each. Both sides
are scored by the same code: analogies in percent, similarities as 100 × Spearman's rho, means over
the seeds ± standard deviations.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from inkstone.evaluation.vectors import analogies, similarity
from inkstone.models import fasttext, glove, word2vec
from inkstone.vectors import formats
from inkstone.vectors.table import Vectors
from inkstone.vectors.vocabulary import from_texts

LINE, EPOCHS = 10_000, 5
D_MODEL, WINDOW, X_MAX, PASSES = 100, 10, 10, 25  # of GloVe
TESTS = {"WordSim-353": "wordsim353.tsv", "SimLex-999": "simlex999.tsv", "MEN": "men3000.tsv"}
FOLDER = common.SHARED_DATA / "word-similarity"
Made = tuple[Vectors, float, float]  # vectors, seconds of training, words or pairs trained on


def scores(vectors: Vectors) -> dict[str, float]:
    """Analogies and similarities, in percent."""
    result = {"analogies": 100 * analogies(vectors, FOLDER / "questions-words.txt").accuracy}
    for name, file in TESTS.items():
        result[name] = 100 * similarity(vectors, FOLDER / file).spearman
    return result


def ours(texts: list[list[str]], what: str) -> Callable[[int], Made]:
    """`what` is an architecture of Word2Vec, or "fasttext"."""
    vocabulary, words = from_texts(texts, min_count=5)
    family: Any = fasttext if what == "fasttext" else word2vec
    architecture = "skipgram" if what == "fasttext" else what
    config = family.Config(architecture=architecture, epochs=EPOCHS, workers=common.THREADS)

    def make(seed: int) -> Made:
        model = family.Model(config, vocabulary, words, seed=seed)
        model.compile()
        began = time.perf_counter()
        model.advance()
        return model.vectors(), time.perf_counter() - began, EPOCHS * sum(map(len, texts))

    return make


def gensim(corpus: dict[str, Any], what: str) -> Callable[[int], Made]:
    """`corpus` is what Gensim is given: corpus_iterable=lists, or corpus_file=path."""
    from gensim.models import FastText, Word2Vec

    settings: dict[str, Any] = {
        "vector_size": 100, "window": 5, "negative": 5, "min_count": 5, "epochs": EPOCHS,
        "sg": int(what != "cbow"), "workers": common.THREADS,
    }  # fmt: skip
    if what == "fasttext":
        settings |= {"sample": 1e-4, "alpha": 0.05}

    def make(seed: int) -> Made:
        family = FastText if what == "fasttext" else Word2Vec
        model = family(**settings, seed=seed + 1)
        model.build_vocab(**corpus)
        began = time.perf_counter()
        model.train(
            **corpus, total_examples=model.corpus_count, total_words=model.corpus_total_words,
            epochs=EPOCHS,
        )  # fmt: skip
        spent = time.perf_counter() - began
        vectors = Vectors(tuple(model.wv.index_to_key), np.array(model.wv.vectors))
        return vectors, spent, EPOCHS * model.corpus_total_words

    return make


def our_glove(texts: list[list[str]], folder: Path) -> Callable[[int], Made]:
    vocabulary, words = from_texts(texts, min_count=5)
    config = glove.Config(
        d_model=D_MODEL, window=WINDOW, x_max=X_MAX, epochs=PASSES, workers=common.THREADS
    )

    def make(seed: int) -> Made:
        place = folder / f"ours-{seed}"
        place.mkdir()
        pairs = glove.count_pairs(config, vocabulary, words, place, seed=seed)
        model = glove.Model(config, vocabulary, pairs, seed=seed)
        model.compile()
        began = time.perf_counter()
        model.advance()
        return model.vectors(), time.perf_counter() - began, PASSES * len(pairs)

    return make


def authors_glove(build: Path, corpus: Path, folder: Path) -> Callable[[int], Made]:
    def run(program: str, *options: object, read: Path, write: Path | None = None) -> None:
        with open(read, "rb") as given, open(write or "/dev/null", "wb") as out:
            command = [str(build / program), *map(str, options), "-verbose", "0"]
            subprocess.run(
                command, stdin=given, stdout=out, stderr=subprocess.DEVNULL, check=True, cwd=folder
            )

    vocabulary, counted = folder / "vocab.txt", folder / "counted.bin"
    run("vocab_count", "-min-count", 5, read=corpus, write=vocabulary)
    run("cooccur", "-vocab-file", vocabulary, "-window-size", WINDOW, read=corpus, write=counted)

    def make(seed: int) -> Made:
        shuffled, saved = folder / f"shuffled-{seed}.bin", folder / f"theirs-{seed}"
        run("shuffle", "-seed", seed + 1, read=counted, write=shuffled)
        began = time.perf_counter()
        run(
            "glove", "-input-file", shuffled, "-vocab-file", vocabulary, "-save-file", saved,
            "-vector-size", D_MODEL, "-x-max", X_MAX, "-iter", PASSES, "-binary", 0,
            "-threads", common.THREADS, "-seed", seed + 1, read=shuffled,
        )  # fmt: skip
        spent = time.perf_counter() - began
        vectors = formats.read(saved.with_suffix(".txt"), "glove")
        return vectors, spent, PASSES * (counted.stat().st_size // 16)

    return make


def compare(what: str, unit: str, sides: dict[str, Callable[[int], Made]], seeds: int) -> Any:
    """A row for each side; the sides take turns."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for seed in range(seeds):
        for side, make in sides.items():
            vectors, spent, units = make(seed)
            row = {"seconds": spent, f"{unit}/s": units / spent, **scores(vectors)}
            found[side].append(row)
    for side, rows in found.items():
        row: dict[str, Any] = {"model": what, "side": side}
        for name in rows[0]:
            values = [r[name] for r in rows]
            row[name] = f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"
            if name in ("seconds", f"{unit}/s"):
                row[name] = statistics.median(values)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--glove", type=Path, help="checkout of stanfordnlp/GloVe, after make")
    parser.add_argument("--only", nargs="+", default=["skipgram", "cbow", "fasttext", "glove"])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with gzip.open(common.SHARED_DATA / "text8-head" / "text8.first6M.txt.gz", "rt") as file:
        raw = file.read().split()
    texts = [raw[i : i + LINE] for i in range(0, len(raw), LINE)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        corpus = folder / "text8.txt"
        corpus.write_text("".join(" ".join(text) + "\n" for text in texts))
        for architecture in ("skipgram", "cbow"):
            if architecture not in given.only:
                continue
            sides = {
                "gensim, lists": gensim({"corpus_iterable": texts}, architecture),
                "gensim, file": gensim({"corpus_file": str(corpus)}, architecture),
                "inkstone": ours(texts, architecture),
            }
            *theirs, mine = compare(architecture, "words", sides, given.seeds)
            ratios = {f"inkstone / {r['side']}": mine["words/s"] / r["words/s"] for r in theirs}
            common.report(f"word-vectors-{architecture}", [*theirs, mine], **ratios)
        if "fasttext" in given.only:
            sides = {
                "gensim": gensim({"corpus_file": str(corpus)}, "fasttext"),
                "inkstone": ours(texts, "fasttext"),
            }
            found = list(compare("fasttext", "words", sides, given.seeds))
            ratio = found[1]["words/s"] / found[0]["words/s"]
            common.report("word-vectors-fasttext", found, **{"inkstone / gensim": ratio})
        if "glove" in given.only:
            sides = {"inkstone": our_glove(texts, folder)}
            if given.glove is not None:
                theirs = authors_glove(given.glove.absolute() / "build", corpus, folder)
                sides = {"stanfordnlp/GloVe": theirs, **sides}
            common.report("word-vectors-glove", list(compare("glove", "pairs", sides, given.seeds)))


if __name__ == "__main__":
    main()
