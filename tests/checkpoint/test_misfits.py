"""Weights that do not fit, for every family with a counterpart in transformers: named errors."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.checkpoint import model as module
from inkstone.errors import CheckpointError

SHAPE = {"vocab_size": 37, "max_seq_len": 16, "d_model": 16, "n_layers": 2, "n_heads": 2}
FAMILIES = [
    name
    for name in registry.names("models")
    if getattr(registry.load("models", name), "KIND", None) in ("causal", "encoder", "seq2seq")
    and hasattr(registry.load("models", name), "to_hf_config")
]
FILE = "model.safetensors"


@pytest.fixture(params=FAMILIES)
def folder(request: Any, tmp_path: Path) -> Path:
    """A sound folder of the family."""
    family = registry.load("models", request.param)
    torch.manual_seed(0)
    shape = {k: v for k, v in SHAPE.items() if k in family.Config.model_fields}
    shape |= {"start_id": 36} if request.param == "marian" else {}
    save_model(tmp_path, family.Model(family.Config(**shape)), None)
    return tmp_path


def test_every_family_is_here() -> None:
    published = {"gpt2", "bert", "roberta", "distilbert", "modernbert", "t5", "bart", "marian"}
    assert published | {"llama", "mixtral"} <= set(FAMILIES)


def test_each_tensor_that_is_missing_or_misshapen_is_named(folder: Path) -> None:
    model, _, _ = load_model(folder)
    family = registry.load("models", type(model).__module__.rsplit(".", 1)[-1])
    whole = module._find_tensors(folder)
    for name, entry in whole.items():
        if name in getattr(family, "HF_OPTIONAL", ()):
            continue
        rest = {key: e for key, e in whole.items() if key != name}
        with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}' is missing"):
            module._plan(family, model, rest, folder)
        for shape in ((*entry.shape[:-1], entry.shape[-1] + 1), (*entry.shape, 1), ()):
            bad = {**whole, name: replace(entry, shape=shape)}
            with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}' has shape"):
                module._plan(family, model, bad, folder)


def test_a_file_without_one_tensor_or_with_a_shorter_one(folder: Path) -> None:
    whole = load_file(folder / FILE)
    name = sorted(key for key in whole if ".1." in key and whole[key].ndim == 2)[-1]
    save_file({key: t for key, t in whole.items() if key != name}, folder / FILE)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}' is missing"):
        load_model(folder)
    save_file({**whole, name: whole[name][:-1].clone()}, folder / FILE)
    with pytest.raises(CheckpointError, match=f"tensor '{re.escape(name)}' has shape"):
        load_model(folder)


def test_a_stranger_is_named(folder: Path) -> None:
    whole = load_file(folder / FILE)
    save_file({**whole, "stranger.weight": torch.zeros(2)}, folder / FILE)
    with pytest.raises(CheckpointError, match=r"tensor 'stranger\.weight' is unexpected"):
        load_model(folder)


@pytest.mark.parametrize("files", [["pytorch_model.bin"], ["pytorch_model-00001-of-00002.bin",
                         "pytorch_model.bin.index.json"], ["model.pt"]])  # fmt: skip
def test_pickled_weights_alone_are_refused(folder: Path, files: list[str]) -> None:
    (folder / FILE).unlink()
    for name in files:
        (folder / name).write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(CheckpointError, match=r"pickled weights such as \S+ are never opened"):
        load_model(folder)
