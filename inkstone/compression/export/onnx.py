"""ONNX: a folder with a graph that ONNX Runtime runs, and the tokenizer beside it.

Batch and length stay open. Encoders take ids and a mask with the padding on the right; decoders
take ids, a mask over all tokens so far (padding on the left) and the keys and values of those read
before, under the names that Hugging Face's optimum gives them. What was written is run, and a graph
that disagrees with the model is not kept. Shapes: B batch, T time, P tokens read before.
"""

from __future__ import annotations

import copy
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from inkstone import registry
from inkstone.compression.export._base import Source
from inkstone.compression.export._onnx_graphs import Graph, example, graph
from inkstone.config import Progress
from inkstone.errors import ModelError
from inkstone.files import write_json

TYPES = ("float32",)
FOLDER = True
OPSET = 18
APART = 1 << 30  # bytes of weights, from where on they lie in a file of their own
TOLERANCE = 1e-4  # of the largest output, and absolute below 1


def write(
    source: Source, target: Path, kind: str, progress: Progress
) -> tuple[dict[str, Any], list[str]]:
    """Fill the folder and run what is in it.

    Raises:
        ModelError: The family has no graph, or ONNX Runtime's results are not the model's.
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
    """
    for name in ("onnx", "onnxscript"):
        registry.extra(name, "export")
    runtime = registry.extra("onnxruntime", "export")
    own = copy.deepcopy(source.model).requires_grad_(False).cpu().float().eval()
    own.compute_dtype = torch.float32
    made = graph(Source(source.folder, own, source.tokenizer, source.info))
    _save(made, own.config, target / "model.onnx")
    progress(1, 2, "steps")
    difference = compare(runtime, made, source.model.config, target / "model.onnx")
    if not difference <= TOLERANCE:
        raise ModelError(
            f"ONNX Runtime's outputs differ from the model's by {difference:.1e} of the largest",
            fix="this is a bug: please report it with the folder's config.json",
        )
    family = registry.load("models", source.family)
    hf = family.to_hf_config(source.model.config)
    if len(source.labels) == getattr(source.model.config, "n_labels", 0):
        hf["id2label"] = {str(i): name for i, name in enumerate(source.labels)}
        hf["label2id"] = {name: i for i, name in enumerate(source.labels)}
    write_json(target / "config.json", hf)
    write_json(target / "inkstone.json", {**source.info, "exported": {"opset": OPSET}})
    if source.tokenizer is not None:
        source.tokenizer.save(target)
    (target / "README.md").write_text(_card(source, made), encoding="utf-8")
    progress(2, 2, "steps")
    return {"opset": OPSET, "outputs": made.outputs[0], "max_difference": difference}, []


def _save(made: Graph, config: Any, path: Path) -> None:
    """Trace the graph and write it."""
    open_, auto = Dim.DYNAMIC, Dim.AUTO
    past = min(3, config.max_seq_len - 2) if made.past else 0
    inputs = example(made, config, 2, min(5, config.max_seq_len - past), past)
    rows: dict[int, Any] = {0: open_, 1: open_}
    shapes: list[Any] = [rows, {0: auto, 1: auto}, *[rows] * (len(made.inputs) - 2)]
    if made.past:
        shapes = [*shapes[:2], [({0: auto, 2: auto}, {0: auto, 2: auto})] * made.past]
    noisy = logging.getLogger("torch.onnx")
    level = noisy.level
    with warnings.catch_warnings(), torch.enable_grad():  # no shortcut that depends on a size
        warnings.simplefilter("ignore")
        noisy.setLevel(logging.ERROR)
        try:
            exported = torch.export.export(
                made.module, tuple(inputs), dynamic_shapes=tuple(shapes), strict=False
            )
            program = torch.onnx.export(
                exported, dynamo=True, verbose=False, opset_version=OPSET,
                input_names=made.inputs, output_names=made.outputs,
            )  # fmt: skip
        finally:
            noisy.setLevel(level)
    assert program is not None
    n_bytes = sum(p.numel() * p.element_size() for p in made.module.parameters())
    program.save(str(path), external_data=n_bytes >= APART)


@torch.no_grad()
def compare(runtime: Any, made: Graph, config: Any, path: Path) -> float:
    """Largest difference of any output at a token, relative to the largest output above 1.

    Args:
        runtime: The module onnxruntime.
        made: The graph.
        config: Of the model.
        path: The file.
    """
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    longest = min(config.max_seq_len, 300)  # beyond the windows of most
    cases = [(3, longest, 0), (1, 1, 0), (4, min(7, longest), 0)]
    if made.past and longest > 2:
        cases += [(2, 1, longest - 1), (3, longest // 2, longest - longest // 2), (1, 1, 1)]
    worst = 0.0
    for seed, (batch, time, past) in enumerate(cases):
        inputs = example(made, config, batch, time, past, seed)
        found = session.run(None, dict(zip(made.inputs, _flat(inputs), strict=True)))
        wanted = _flat(list(made.module(*inputs)))
        real = inputs[1][:, past:].bool() if made.past else inputs[1].bool()
        for name, theirs, ours in zip(made.outputs, found, wanted, strict=True):
            a, b = torch.from_numpy(theirs), torch.from_numpy(ours)
            if name.startswith("present"):
                at = inputs[1].bool()[:, None, :, None].expand_as(a)
                a, b = a[at], b[at]
            elif name in made.of_tokens:
                a, b = a[real], b[real]
            if a.shape != b.shape:
                raise ModelError(f"ONNX Runtime gives {name} the shape {list(theirs.shape)}")
            scale = max(1.0, float(b.abs().max()))
            worst = max(worst, float((a - b).abs().max()) / scale)
    return worst


def _flat(values: list[Any]) -> list[Any]:
    """Tensors as arrays, those in lists and pairs in their order."""
    out: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            out.append(value.detach().numpy())
        else:
            out += _flat(list(value))
    return out


def _card(source: Source, made: Graph) -> str:
    padded = "left" if made.past else "right"
    return f"""# {source.name}, for ONNX Runtime

`model.onnx` (opset {OPSET}) takes {", ".join(f"`{name}`" for name in made.inputs[:3])}
{"and further keys and values " if len(made.inputs) > 3 else ""}and gives `{made.outputs[0]}`. Any
batch and length fit; padding stands on the {padded}, with 0 in `attention_mask`. Ids come from
`tokenizer.json`; what labels mean stands in `config.json`.
"""
