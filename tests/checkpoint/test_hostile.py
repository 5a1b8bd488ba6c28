"""Model folders as a stranger or a failing disk could leave them.

Always a typed error that names the file, before memory is taken; and nothing runs.
"""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.checkpoint import load_model, save_model
from inkstone.checkpoint.tensors import read_header, read_tensors, write_tensors
from inkstone.errors import CheckpointError, InkstoneError, ModelError
from inkstone.files import MANIFEST, atomic_folder, verify_folder
from inkstone.models import gpt2, llama

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound model folder without a manifest, so that damage meets the parsers themselves."""
    folder = tmp_path_factory.mktemp("good")
    torch.manual_seed(0)
    shape = {"vocab_size": 24, "d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 16}
    save_model(folder, llama.Model(llama.Config(**shape)), None)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    shutil.copytree(good, tmp_path / "model")
    return tmp_path / "model"


def made(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def entry(shape: list[Any], start: Any, end: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


FOUR = b"\0" * 4
BAD_FILES = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "length 0": made(b"", length=0),
    "length 2^63": made(b"{}", length=2**63),
    "length past the end": made(b"{}", length=3),
    "not JSON": made(b"{nope}"),
    "a list": made([]),
    "deep": made(b'{"a":' * 50_000),
    "twice the same name": made(b'{"a":' + json.dumps(entry([1], 0, 4)).encode() + b',"a":'
                                + json.dumps(entry([1], 0, 4)).encode() + b"}", FOUR),
    "trailing bytes": made({"a": entry([1], 0, 4)}, FOUR + b"x"),
    "a hole": made({"a": entry([1], 4, 8)}, FOUR * 2),
    "an overlap": made({"a": entry([1], 0, 4), "b": entry([1], 2, 6)}, FOUR + b"\0\0"),
    "truncated data": made({"a": entry([2], 0, 8)}, FOUR),
    "overflowing shape": made({"a": entry([2**62, 2**62], 0, 4)}, FOUR),
    "negative size": made({"a": entry([-1], 0, 4)}, FOUR),
    "negative offset": made({"a": entry([1], -4, 0)}, FOUR),
    "a truth value as size": made({"a": entry([True], 0, 4)}, FOUR),
    "a fraction as size": made({"a": entry([1.0], 0, 4)}, FOUR),
    "unknown dtype": made({"a": entry([1], 0, 4, "PICKLE")}, FOUR),
    "no offsets": made({"a": {"dtype": "F32", "shape": [1]}}, FOUR),
    "metadata is no table": made({"__metadata__": [1]}),
    "a pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x02os\x94",
    "a zip": b"PK\x03\x04" + b"\0" * 60,
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a web page": b"<!doctype html><title>404</title>" + b" " * 40,
}  # fmt: skip


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_weight_file_is_named(
    copy: Path, content: bytes, no_side_effects: Callable[[], Any]
) -> None:
    (copy / WEIGHTS).write_bytes(content)
    with no_side_effects(), pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(copy)


def test_every_truncation_of_the_header_and_many_of_the_data(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for size in [*range(header + 1), *range(header, len(whole), 997)]:
        (copy / WEIGHTS).write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            read_header(copy / WEIGHTS)


def test_huge_claims_take_no_memory(copy: Path) -> None:
    """A header of 100 MB, or tensors of terabytes, are refused before anything is allocated."""
    claims = [
        made({"a": entry([2**40], 0, 2**42)}, FOUR),
        made(b"{}", length=99_000_000),
    ]
    for content in claims:
        (copy / WEIGHTS).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(CheckpointError):
            load_model(copy)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_byte_loads_or_is_a_typed_error(good: Path, data: st.DataObject) -> None:
    raw = bytearray((good / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(raw[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = good / "changed.safetensors"
    path.write_bytes(bytes(raw))
    try:
        read_tensors(path)
    except CheckpointError as error:
        assert "changed.safetensors" in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 2**31}, "d_model"),
        ({"num_hidden_layers": 10**6}, "n_layers"),
        ({"num_hidden_layers": -1}, "n_layers"),
        ({"num_hidden_layers": 3}, "missing"),
        ({"num_hidden_layers": 1}, "unexpected"),
        ({"num_attention_heads": 3}, "shape|heads|divide|multiple"),
        ({"num_key_value_heads": 3}, "heads|divide|multiple"),
        ({"hidden_size": "wide"}, "d_model|malformed|heads"),
        ({"hidden_size": None}, "d_model|shape|malformed"),
        ({"vocab_size": 25}, "shape"),
        ({"intermediate_size": 7}, "shape"),
        ({"rope_theta": float("nan"), "rope_parameters": None}, "rope_theta"),
        ({"model_type": "../../etc"}, "not known"),
        ({"model_type": ["llama"]}, "not known"),
        ({"hidden_act": "exec"}, "not supported"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "not supported"),
    ],
)
def test_a_config_that_does_not_fit(copy: Path, change: dict[str, Any], message: str) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ModelError, CheckpointError), match=message):
        load_model(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(copy: Path, value: float) -> None:
    tensors = read_tensors(copy / WEIGHTS)
    tensors["model.norm.weight"][3] = value
    write_tensors(copy / WEIGHTS, tensors)
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' holds NaN or infinity"):
        load_model(copy)


def test_weights_of_another_dtype_or_name(copy: Path) -> None:
    tensors = read_tensors(copy / WEIGHTS)
    whole = dict(tensors)
    whole["model.norm.weight"] = whole["model.norm.weight"].to(torch.int64)
    write_tensors(copy / WEIGHTS, whole)
    with pytest.raises(CheckpointError, match="int64"):
        load_model(copy)
    whole = {**tensors, "extra.weight": torch.zeros(1)}
    write_tensors(copy / WEIGHTS, whole)
    with pytest.raises(CheckpointError, match=r"'extra\.weight' is unexpected"):
        load_model(copy)


def test_a_stored_head_must_be_the_tied_embedding(copy: Path) -> None:
    tensors = read_tensors(copy / WEIGHTS)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_tensors(copy / WEIGHTS, tensors)
    load_model(copy)
    tensors["lm_head.weight"][0, 0] += 1
    write_tensors(copy / WEIGHTS, tensors)
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        load_model(copy)


@pytest.mark.parametrize(
    ("name", "message"),
    [("../model.safetensors", "not a file of this folder"), ("/etc/passwd", "not a file"),
     ("missing-00001.safetensors", "is missing"), ("a/b.safetensors", "not a file"),
     (".hidden.safetensors", "not a file")],
)  # fmt: skip
def test_a_shard_index_stays_in_its_folder(copy: Path, name: str, message: str) -> None:
    tensors = read_tensors(copy / WEIGHTS)
    (copy / WEIGHTS).rename(copy.parent / WEIGHTS)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, name)}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        load_model(copy)


def test_only_pickles_is_an_error_that_says_so(
    copy: Path, no_side_effects: Callable[[], Any]
) -> None:
    (copy / WEIGHTS).unlink()
    (copy / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    with no_side_effects(), pytest.raises(CheckpointError, match="never opened"):
        load_model(copy)


def test_code_beside_the_weights_is_never_looked_at(
    copy: Path, no_side_effects: Callable[[], Any]
) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Evil"}
    path.write_text(json.dumps(config))
    (copy / "evil.py").write_text("raise SystemExit('ran')")
    with no_side_effects():
        model, tokenizer, _ = load_model(copy)
    assert tokenizer is None and sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"\xff", b'{"a": 1, "a": 2}'])
@pytest.mark.parametrize("name", ["config.json", "inkstone.json"])
def test_json_that_is_none(copy: Path, name: str, content: bytes) -> None:
    (copy / name).write_bytes(content)
    with pytest.raises(InkstoneError, match=name):
        load_model(copy)


def test_one_flipped_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    model = gpt2.Model(gpt2.Config(vocab_size=24, d_model=16, n_layers=1, n_heads=2, max_seq_len=8))
    with atomic_folder(tmp_path / "model") as folder:
        save_model(folder, model, None)
    for path in sorted((tmp_path / "model").iterdir()):
        if path.name == MANIFEST:
            continue
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 4
        path.write_bytes(bytes(changed))
        with pytest.raises(CheckpointError, match=path.name):
            verify_folder(tmp_path / "model")
        path.write_bytes(whole)
    verify_folder(tmp_path / "model")
    load_model(tmp_path / "model")


LISTINGS = [
    "{}x", '{"a": 1}', '{"../x": {"bytes": 1, "sha256": "0"}}',
    '{"/etc/passwd": {"bytes": 1, "sha256": "0"}}',
]  # fmt: skip


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_hostile_manifest(tmp_path: Path, listing: str) -> None:
    (tmp_path / MANIFEST).write_text(listing)
    with pytest.raises(CheckpointError, match=MANIFEST):
        verify_folder(tmp_path)
