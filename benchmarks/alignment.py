"""Where a recurrent translator looks: train it on Multi30k, score it, and draw its attention.

    python -m benchmarks.alignment [--minutes 3] [--sentence 3]

English to German, the recipe multi30k-rnn, scored on the test of 2016 with beam search (4 beams).
Then one test sentence is translated: for every German word its weights over the English words,
those of a word's pieces summed (of a German word's pieces: their mean), on stdout as shades and in
docs/images/alignment.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import common

SHADES = " ░▒▓█"


def train(run: Path, minutes: float) -> dict[str, Any]:
    """One run of the recipe; its result.json."""
    command = [
        sys.executable, "-m", "inkstone", "train", "multi30k-rnn", f"training.minutes={minutes}",
        "--data", str(common.SHARED_DATA / "multi30k-en-de"), "--run", str(run), "--quiet",
    ]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": str(common.THREADS)}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    result: dict[str, Any] = json.loads((run / "result.json").read_text("utf-8"))
    return result


def look(run: Path, text: str) -> tuple[list[str], list[str], Any]:
    """Source words, written words and the weights between them, [written, source]."""
    import torch

    import inkstone as ink
    from inkstone.inference.beam import BeamConfig, translate

    opened = ink.load(run)
    model, tokenizer = opened.model, opened.tokenizer
    assert tokenizer is not None
    source = torch.tensor([[*tokenizer.encode(text), tokenizer.eos_id]])
    config = BeamConfig(max_tokens=min(64, model.config.max_seq_len))
    written = translate(model, source, None, config, {tokenizer.eos_id})[0][0].ids
    read = torch.tensor([[model.config.start_id, *written[:-1]]])
    weights = model.align(source, read)[0].float()
    columns, column_words = words(tokenizer, source[0].tolist())
    rows, row_words = words(tokenizer, written)
    summed = torch.zeros(len(weights), len(column_words)).index_add(1, columns, weights)
    total = torch.zeros(len(row_words), len(column_words)).index_add(0, rows, summed)
    return column_words, row_words, (total / rows.bincount()[:, None]).numpy()


def words(tokenizer: Any, ids: list[int]) -> tuple[Any, list[str]]:
    """The word that each token belongs to, and the words; a word begins with a space."""
    import torch

    places: list[int] = []
    found: list[str] = []
    for token in ids:
        text = tokenizer.token_bytes(token).decode("utf-8", "replace")
        end = token == tokenizer.eos_id
        if not found or end or text.startswith(" ") or not text[:1].isalnum():
            found.append("")
        found[-1] += "(end)" if end else text.strip()
        places.append(len(found) - 1)
    return torch.tensor(places), found


def draw(columns: list[str], rows: list[str], weights: Any, path: Path) -> None:
    """The weights as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1 + 0.45 * len(columns), 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=60, ha="left")
    axes.set_yticks(range(len(rows)), rows)
    axes.xaxis.tick_top()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--sentence", type=int, default=3, help="of the test, from 0")
    parser.add_argument("--run", type=Path, help="draw for this finished run instead of training")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.run or Path(temporary) / "run"
        if arguments.run is None:
            result = train(run, arguments.minutes)
        else:
            result = json.loads((run / "result.json").read_text("utf-8"))
        row = {s["name"]: s["value"] for s in result["scores"]}
        time = result["time"]["training_s"]
        row = {"parameters": result["parameters"], "steps": result["steps"], "seconds": time} | row
        common.report("alignment", [row])
        path = common.SHARED_DATA / "multi30k-en-de" / "test_2016_flickr.jsonl"
        with open(path, encoding="utf-8") as file:
            pair = json.loads(file.read().splitlines()[arguments.sentence])
        columns, rows, weights = look(run, pair["en"])
    print(f"{pair['en']}\nwanted: {pair['de']}\n")
    wide = max(map(len, rows))
    for word, line in zip(rows, weights, strict=True):
        shades = "".join(SHADES[min(4, int(5 * w))] * 2 + " " for w in line)
        print(f"{word:>{wide}}  {shades} {columns[int(line.argmax())]}")
    draw(columns, rows, weights, common.ROOT / "docs" / "images" / "alignment.png")


if __name__ == "__main__":
    main()
