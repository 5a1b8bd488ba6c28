"""checkpoint/compressed.py: whole numbers on disk, as compressed-tensors has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.checkpoint import load_model, read_tensors, save_model, write_tensors
from inkstone.checkpoint.compressed import pack, unpack
from inkstone.compression.quantize import choose, quantize_model
from inkstone.errors import CheckpointError, ModelError
from inkstone.models import bert, gpt2, llama
from inkstone.nn import native

FAMILIES = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "llama": (llama, {"n_heads": 4, "n_kv_heads": 2, "d_ff": 96}),
    "untied": (llama, {"n_heads": 4, "d_ff": 96, "tied_head": False}),
    "bert": (bert, {"n_heads": 4, "head": "mlm"}),
}


def _small(name: str, bits: int, keep: tuple[str, ...] = (), *, floats: bool = False) -> Any:
    family, shape = FAMILIES[name]
    torch.manual_seed(0)
    config = family.Config(vocab_size=96, max_seq_len=64, d_model=64, n_layers=2, **shape)
    model = family.Model(config).eval()
    return quantize_model(model, choose(model, bits, keep, floats=floats))


def _ids() -> torch.Tensor:
    return torch.randint(96, (2, 30), generator=torch.Generator().manual_seed(1))


KINDS = {"int8": (8, False), "int4": (4, False), "fp8": (8, True)}


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("name", list(FAMILIES))
def test_there_and_back(name: str, kind: str, tmp_path: Path) -> None:
    bits, floats = KINDS[kind]
    small = _small(name, bits, floats=floats)
    save_model(tmp_path, small, None)
    opened, _, about = load_model(tmp_path)
    ours, theirs = small.state_dict(), opened.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    with torch.no_grad():
        assert torch.equal(small(_ids()), opened(_ids()))
    assert "from transformers" not in (tmp_path / "README.md").read_text()
    family, _ = FAMILIES[name]
    assert about["parameters"] == family.count_parameters(small.config)
    size = (tmp_path / "model.safetensors").stat().st_size
    assert size < about["parameters"] * (1.3 if bits == 8 else 1.0)


@pytest.mark.parametrize("kind", list(KINDS))
def test_transformers_opens_it_with_compressed_tensors(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of words left as it is: they know no table of whole numbers."""
    monkeypatch.setattr(native, "library", lambda name: None)  # which rounds the inputs, too
    pytest.importorskip("compressed_tensors")
    transformers = pytest.importorskip("transformers")
    bits, floats = KINDS[kind]
    small = _small("llama", bits, keep=("embed",), floats=floats)
    save_model(tmp_path, small, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(_ids()).logits, small(_ids()), atol=2e-5)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from((8, 4)), st.integers(1, 9), st.integers(1, 4), st.integers(0, 1 << 30))
def test_every_code_comes_back(bits: int, rows: int, groups: int, seed: int) -> None:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    chance = torch.Generator().manual_seed(seed)
    codes = torch.randint(low, high, (rows, 32 * groups), generator=chance, dtype=torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.int32 and packed.shape == (rows, groups * bits)
    assert torch.equal(unpack(packed, bits), codes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path, _small("llama", 4), None)
    return tmp_path


def _change(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = dict(read_tensors(folder / "model.safetensors"))
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    write_tensors(folder / "model.safetensors", tensors)


Q = "model.layers.0.self_attn.q_proj.weight"
BAD: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "no scales": (f"{Q}_scale", None, "missing"),
    "no shape": (f"{Q}_shape", None, "missing"),
    "no codes": (f"{Q}_packed", None, "unexpected"),
    "another shape": (f"{Q}_shape", torch.tensor([64, 32]), "shape says"),
    "a negative shape": (f"{Q}_shape", torch.tensor([-64, 64]), "shape says"),
    "three sizes": (f"{Q}_shape", torch.tensor([64, 64, 1]), "two whole numbers"),
    "codes as floats": (f"{Q}_packed", torch.zeros(64, 8), "int32"),
    "codes in one row": (f"{Q}_packed", torch.zeros(512, dtype=torch.int32), "two dimensions"),
    "too few scales": (f"{Q}_scale", torch.zeros(63, 2).half(), "do not fit"),
    "other groups": (f"{Q}_scale", torch.zeros(64, 3).half(), "groups of 32"),
    "NaN": (f"{Q}_scale", torch.full((64, 2), float("nan")).half(), "NaN"),
    "whole numbers for a norm": (
        "model.norm.weight_packed", torch.zeros(2, 8, dtype=torch.int32), "missing"
    ),
}  # fmt: skip


BAD_FLOATS: dict[str, tuple[str, torch.Tensor | None, str]] = {
    "no scales": (f"{Q}_scale", None, "missing"),
    "no codes": (Q, None, "missing"),
    "one scale": (f"{Q}_scale", torch.ones(1, 1), "not one for each of 64 rows"),
    "whole scales": (f"{Q}_scale", torch.ones(64, 1, dtype=torch.int32), "scales are floats"),
    "codes in one row": (Q, torch.ones(64 * 64).to(torch.float8_e4m3fn), "two dimensions"),
    "another width": (Q, torch.ones(64, 32).to(torch.float8_e4m3fn), "has shape"),
    "infinite": (f"{Q}_scale", torch.full((64, 1), float("inf")), "NaN or infinity"),
    "NaN": (Q, torch.full((64, 64), float("nan")).to(torch.float8_e4m3fn), "NaN or infinity"),
    "codes for a norm": ("model.norm.weight", torch.ones(64).to(torch.float8_e4m3fn), "missing"),
}


@pytest.mark.parametrize("what", list(BAD_FLOATS))
def test_damaged_floats_are_named(what: str, tmp_path: Path) -> None:
    save_model(tmp_path, _small("llama", 8, floats=True), None)
    name, tensor, words = BAD_FLOATS[what]
    _change(tmp_path, name, tensor)
    with pytest.raises(CheckpointError, match=words):
        load_model(tmp_path)


@pytest.mark.parametrize("what", list(BAD))
def test_damaged_weights_are_named(folder: Path, what: str) -> None:
    name, tensor, words = BAD[what]
    _change(folder, name, tensor)
    with pytest.raises(CheckpointError, match=words):
        load_model(folder)


@pytest.mark.parametrize(
    "given",
    [
        {"quant_method": "gptq", "bits": 4}, {"quant_method": "compressed-tensors"},
        {"quant_method": "compressed-tensors", "format": "marlin-24"}, [], "int4", 7,
    ],
)  # fmt: skip
def test_other_ways_to_compress_are_refused_by_name(folder: Path, given: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": given}))
    with pytest.raises(ModelError, match="compressed as"):
        load_model(folder)


def test_a_scale_beyond_fp16_is_refused(folder: Path) -> None:
    _change(folder, f"{Q}_scale", torch.full((64, 2), 1e30))  # more than fp16 holds
    with pytest.raises(CheckpointError):
        load_model(folder)
