"""What fewer bits a weight cost a trained model: Inkstone beside llama.cpp, on the same tokens.

    python -m benchmarks.widths [--minutes M]

Two trained models: stories260K (a Llama of llama2.c's author; read on stories) and `inkstone train
gpt-small`, M minutes of WikiText-2 (kept in benchmarks/out; read on its test part). Ours become
small by `inkstone compress`, 4 bits with a view to text that is not read here; llama.cpp reads our
exports in its own formats. Loss is nats a token over windows of 256 tokens, the first of which is
given; a width's cost is its loss less that of fp32 here. Reach: no larger than llama.cpp's at as
many bits.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import common
from inkstone import api

WINDOW, WINDOWS = 256, 40
WIDTHS = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}  # and f16 of llama.cpp besides
Logits = Callable[[Sequence[int]], Any]


def loss(logits: Logits, windows: Sequence[Sequence[int]]) -> float:
    """Nats a token."""
    nats, n = 0.0, 0
    for ids in windows:
        scores = np.asarray(logits(ids[:-1]), np.float64)
        top = scores.max(1)
        every = top + np.log(np.exp(scores - top[:, None]).sum(1))
        nats += float((every - scores[np.arange(len(scores)), ids[1:]]).sum())
        n += len(scores)
    return nats / n


def ours(model: api.LanguageModel) -> Logits:
    """As the model answers."""
    import torch

    from inkstone.nn import compiled_decoder

    @torch.inference_mode()
    def logits(ids: Sequence[int]) -> Any:
        network, rows = model.model, torch.tensor([ids])
        reader = compiled_decoder.reader(network)
        if reader is None:
            return network(rows)[0].float().numpy()
        return reader.logits(reader.read(rows)[0]).numpy()

    return logits


def windows(model: api.LanguageModel, text: str) -> list[list[int]]:
    """The first ones of a text."""
    ids = model.tokenizer.encode(text[: 12 * WINDOW * WINDOWS])
    cut = [ids[i : i + WINDOW] for i in range(0, len(ids) - WINDOW, WINDOW)]
    return cut[:WINDOWS]


def costs(name: str, model: api.LanguageModel, view: Path, text: str) -> list[dict[str, Any]]:
    """A row for every width of both sides."""
    from benchmarks.llama_cpp import Opened

    read = windows(model, text)
    exact = loss(ours(model), read)
    rows = [{"model": name, "weights": "fp32", "inkstone, nats": exact}]
    with tempfile.TemporaryDirectory() as temporary:
        for width, kind in (("f16", "f16"), *WIDTHS.items()):
            row: dict[str, Any] = {"model": name, "weights": f"{width} / {kind}"}
            if width in WIDTHS:
                small = Path(temporary) / width
                api.compress(model.path, width, small, data=view)
                row["inkstone, nats"] = loss(ours(api.load(small, device="cpu")), read)
                row["cost"] = row["inkstone, nats"] - exact
            file = Path(temporary) / f"{kind}.gguf"
            model.export(file, "gguf", kind=kind)
            row["llama.cpp, nats"] = loss(Opened(file).logits, read)
            row["its cost"] = row["llama.cpp, nats"] - exact
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=10)
    given = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        places = common.SHARED_DATA / "checkpoints"
        api.import_model(
            places / "stories260K.bin", folder / "stories", tokenizer=places / "tok512.bin"
        )
        stories = (common.SHARED_DATA / "tinystories-sample" / "tinystories.txt").read_text("utf-8")
        half = len(stories) // 2
        (folder / "view.txt").write_text(stories[:half], encoding="utf-8")
        model = api.load(folder / "stories", device="cpu")
        rows += costs("stories260K", model, folder / "view.txt", stories[half:])
        run = common.OUT / f"wikitext2-gpt-{given.minutes:g}"
        wiki = common.SHARED_DATA / "wikitext-2"
        with gzip.open(wiki / "train.txt.gz", "rt", encoding="utf-8") as file:
            (folder / "train.txt").write_text(file.read(), encoding="utf-8")
        if not (run / "result.json").is_file():
            common.train("gpt-small", folder / "train.txt", f"training.minutes={given.minutes:g}",
                         "evaluation.baselines=false", run=run)  # fmt: skip
        model = api.load(run, device="cpu")
        name = f"gpt-small, {model.n_parameters / 1e6:.1f} M weights"
        rows += costs(name, model, folder / "train.txt", (wiki / "test.txt").read_text("utf-8"))
    common.report("widths", rows)


if __name__ == "__main__":
    main()
