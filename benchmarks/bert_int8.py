"""BERT-base in 8 bits on IMDb reviews as they come: Inkstone, ONNX Runtime and CTranslate2.

    python -m benchmarks.bert_int8 [--rounds N]

The batches are those of `benchmarks.bert_base`: 16 reviews, cut at 512 tokens, in the order of the
file. All sides give the last states of every token and have the same drawn weights. Inkstone
computes no padding; ONNX Runtime's graph (our export, by its own dynamic quantization) and
CTranslate2 (its own conversion of our folder) pad to the longest of a batch. Each side is a process
of its own on 2 threads; they take turns, and the figure is the median of all passes but the first.
Reach: 1.2 × the better of the two.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bert_base import ROWS, batches

PASSES = 3
Reader = Callable[[Any], Any]


def inkstone(folder: Path, dtype: str) -> Reader:
    """Maps of whole numbers; what stands between them in fp32 or bf16."""
    import torch

    from inkstone.checkpoint import load_model

    model, _, _ = load_model(folder / "int8")
    model.compute_dtype = torch.bfloat16 if dtype == "bf16" else torch.float32

    @torch.inference_mode()
    def read(batch: Any) -> Any:
        return model.hidden(batch[0], attention_mask=batch[1])

    return read


def onnxruntime(folder: Path, _: str) -> Reader:
    """Its dynamic quantization to signed bytes."""
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = common.THREADS
    session = runtime.InferenceSession(str(folder / "int8.onnx"), options)
    names = {given.name for given in session.get_inputs()}

    def read(batch: Any) -> Any:
        ids, mask = batch[0].numpy(), batch[1].numpy()
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids * 0}
        return session.run(["last_hidden_state"], {k: v for k, v in given.items() if k in names})[0]

    return read


def ctranslate2(folder: Path, _: str) -> Reader:
    """Its converter's int8."""
    import ctranslate2 as library

    encoder = library.Encoder(
        str(folder / "ct2"), device="cpu", compute_type="int8", intra_threads=common.THREADS
    )

    def read(batch: Any) -> Any:
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch[0], batch[1], strict=True)]
        return encoder.forward_batch(rows).last_hidden_state

    return read


SIDES = {"inkstone": inkstone, "onnxruntime": onnxruntime, "ctranslate2": ctranslate2}
JOBS = (("inkstone", "bf16"), ("inkstone", "fp32"), ("onnxruntime", ""), ("ctranslate2", ""))


def prepare(folder: Path) -> None:
    """The same network in four folders."""
    import ctranslate2 as library
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from inkstone.checkpoint import save_model
    from inkstone.compression.export import Source, export
    from inkstone.compression.quantize import choose, quantize_model
    from inkstone.models import bert
    from inkstone.tokenizers.tokenizer import Tokenizer

    torch.manual_seed(0)
    words = common.SHARED_DATA / "tokenizers" / "bert" / "bert-base-uncased-vocab.txt"
    tokenizer = Tokenizer.load(words)
    model = bert.Model(bert.Config(head="none", pooler=True)).eval()
    for name in ("fp32", "int8"):
        (folder / name).mkdir()
    save_model(folder / "fp32", model, tokenizer)
    save_model(folder / "int8", quantize_model(model, choose(model, 8, ["embed"])), tokenizer)
    export(Source(folder / "fp32", model, tokenizer), folder / "onnx", "onnx")
    quantize_dynamic(
        folder / "onnx" / "model.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8
    )
    library.converters.TransformersConverter(str(folder / "fp32")).convert(
        str(folder / "ct2"), quantization="int8"
    )


def measure(side: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Seconds of every pass over all batches, and how far states are from fp32."""
    import torch

    from inkstone.checkpoint import load_model

    read, given = SIDES[side](folder, dtype), batches("ragged inference")
    times = []
    for _ in range(PASSES + 1):
        began = time.perf_counter()
        for batch in given:
            read(batch)
        times.append(time.perf_counter() - began)
    exact, _, _ = load_model(folder / "fp32")
    ids, mask = given[0][0][:4], given[0][1][:4]
    with torch.inference_mode():
        wanted = exact.hidden(ids, attention_mask=mask)
    found = read((ids, mask, None))
    states = found if isinstance(found, torch.Tensor) else torch.tensor(_array(found))
    states = states[:, : ids.shape[1]].float()
    off = (states - wanted)[mask[:, : states.shape[1]].bool()].std() / wanted[mask.bool()].std()
    return {"reviews_per_s": [ROWS * len(given) / t for t in times[1:]], "error": float(off)}


def _array(found: Any) -> Any:
    import numpy as np

    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        side, dtype, folder = given.side
        print(json.dumps(measure(side, dtype, Path(folder))))
        return
    found: dict[tuple[str, str], list[dict[str, Any]]] = {job: [] for job in JOBS}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        for _ in range(given.rounds):
            for job in JOBS:
                run = common.child("benchmarks.bert_int8", "--side", *job, name)
                found[job].append(run)
                print(*job, run, file=sys.stderr, flush=True)
    rows = []
    for (side, dtype), runs in found.items():
        rate = statistics.median(r for run in runs for r in run["reviews_per_s"])
        name = f"{side}, int8 maps" + (f", rest {dtype}" if dtype else "")
        rows.append(
            {"side": name, "reviews/s": rate, "states off, of their spread": runs[0]["error"]}
        )
    peers = max(row["reviews/s"] for row in rows if not row["side"].startswith("inkstone"))
    for row in rows:
        row["ratio to the better peer"] = row["reviews/s"] / peers
    common.report("bert_int8", rows, runs={"/".join(job): runs for job, runs in found.items()})


if __name__ == "__main__":
    main()
