"""`import`: llama2.c's files become folders with the same text; hostile ones are named."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone.checkpoint import foreign, llama2c
from inkstone.errors import CheckpointError, InkstoneError, TokenizerError
from inkstone.inference.config import SamplingConfig
from inkstone.models import llama

SHAPE = {"d_model": 16, "d_ff": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2,
         "vocab_size": 40, "max_seq_len": 8}  # fmt: skip


def _pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Rows of q or k as llama2.c has them, one by one."""
    rows = []
    for head in weight.split(head_dim):
        for i in range(head_dim // 2):
            rows += [head[i], head[i + head_dim // 2]]
    return torch.stack(rows)


def _write(path: Path, model: llama.Model, version: int) -> None:
    """As export.py of llama2.c lays a model out."""
    c, state = model.config, dict(model.state_dict())

    def layers(name: str) -> list[torch.Tensor]:
        found = [state[f"blocks.{i}.{name}.weight"] for i in range(c.n_layers)]
        return [_pairs(w, c.head_dim) for w in found] if name in ("q", "k") else found

    table, norm = state["embed.weight"], state["norm.weight"]
    head = [] if c.tied_head else [state["head.weight"]]
    attention = [w for name in ("q", "k", "v", "o") for w in layers(name)]
    mlp = [w for name in ("gate", "down", "up") for w in layers(name)]
    size = c.vocab_size if c.tied_head or version else -c.vocab_size
    sizes = (c.d_model, c.d_ff, c.n_layers, c.n_heads, c.n_kv_heads, size, c.max_seq_len)
    start = struct.pack("<7i", *sizes)
    if version:
        start = struct.pack("<Ii", 0x616B3432, version) + start + bytes([c.tied_head])
        start = start.ljust(256, b"\0")
        parts = [*layers("attention_norm"), *layers("mlp_norm"), norm, table, *attention, *mlp]
    else:
        angles = torch.zeros(2, c.max_seq_len, c.head_dim // 2)
        parts = [table, *layers("attention_norm"), *attention, *layers("mlp_norm"), *mlp, norm]
        parts.append(angles)
    data = b"".join(t.contiguous().numpy().astype("<f4").tobytes() for t in [*parts, *head])
    path.write_bytes(start + data)


def _model(tied: bool) -> llama.Model:
    torch.manual_seed(0)
    return llama.Model(llama.Config(**SHAPE, tied_head=tied)).eval()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "model.bin"
    _write(path, _model(tied=False), 0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def stories(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> ink.LanguageModel:
    folder = shared_data / "checkpoints"
    to = tmp_path_factory.mktemp("import") / "stories"
    return ink.import_model(folder / "stories260K.bin", to, tokenizer=folder / "tok512.bin")


@pytest.fixture(scope="module")
def expected(shared_data: Path) -> dict[str, Any]:
    path = shared_data / "checkpoints" / "stories260K.expected.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


# --- real weights ---------------------------------------------------------------------------------


def test_the_trained_model_tells_its_story(
    stories: ink.LanguageModel, expected: dict[str, Any]
) -> None:
    settings = SamplingConfig(temperature=0.0, max_tokens=len(expected["ids"]))
    [answer] = stories.generator.generate([expected["start"]], settings)
    assert answer.ids == expected["ids"]
    assert answer.text == expected["text"]
    same = stories.generate("", temperature=0.0, max_tokens=len(expected["ids"]))
    assert same.text == answer.text and len(answer.text) >= 450
    assert (
        "".join(stories.stream("", temperature=0.0, max_tokens=20))
        == answer.text[: len(stories.generate("", temperature=0.0, max_tokens=20).text)]
    )


def test_transformers_opens_it_and_tells_the_same(
    stories: ink.LanguageModel, expected: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        stories.path, output_loading_info=True
    )
    assert not any(report.values()), report
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories.path)
    start = tokenizer("", return_tensors="pt")["input_ids"]
    assert start.tolist() == [expected["start"]]
    out = model.generate(start, do_sample=False, max_new_tokens=len(expected["ids"]))[0]
    assert out[1:].tolist() == expected["ids"]
    text = tokenizer.decode(out, skip_special_tokens=True)
    assert text == stories.generate("", temperature=0.0, max_tokens=len(expected["ids"])).text
    for text in ("Once upon a time", "  two  spaces\n\n", "café 🙂 the the", ""):
        assert stories.tokenizer is not None
        ids = [1, *stories.tokenizer.encode(text)]
        assert tokenizer(text)["input_ids"] == ids
        logits = model(torch.tensor([ids])).logits
        assert (logits - stories.model(torch.tensor([ids]))).abs().max() <= 1e-4


def test_what_the_folder_says(stories: ink.LanguageModel) -> None:
    assert stories.info["imported"] == {"format": "llama2.c", "file": "stories260K.bin"}
    facts = stories.describe()
    assert (facts["family"], facts["parameters"], facts["context"]) == ("llama", 260_032, 512)
    assert stories.tokenizer is not None and stories.tokenizer.vocab_size == 512
    assert stories.tokenizer.eos_id == 1  # the format ends a text where the next one begins
    assert not {1, 2} & {*stories.tokenizer.encode("<s></s>\n<s>\n")}
    assert stories.tokenizer.decode(stories.tokenizer.encode(" a\n 🙂 b")) == " a\n 🙂 b"


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
def test_every_weight_finds_its_place(tmp_path: Path, version: int, tied: bool) -> None:
    made = _model(tied)
    _write(tmp_path / "m.bin", made, version)
    found = llama2c.read(tmp_path / "m.bin")
    assert found.config == made.config and not found.training
    assert found.state_dict().keys() == made.state_dict().keys()
    for name, tensor in made.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    ids = torch.arange(8)[None]
    assert torch.equal(found(ids), made(ids))


def test_without_a_tokenizer_there_are_ids(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(small)
    model = ink.import_model(tmp_path / "m.bin", tmp_path / "to")
    assert model.tokenizer is None and model.describe()["tokenizer"] is None
    assert len(model.generator.generate([[1, 2]], SamplingConfig(max_tokens=3))[0].ids) == 3


# --- what cannot be imported ----------------------------------------------------------------------


def test_nothing_is_overwritten(tmp_path: Path, small: bytes) -> None:
    (tmp_path / "m.bin").write_bytes(small)
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "mine.txt").write_text("mine")
    for place in (tmp_path / "to", tmp_path / "to" / "mine.txt"):
        with pytest.raises(CheckpointError, match="exists"):
            foreign.import_model(tmp_path / "m.bin", place)
    assert [p.name for p in (tmp_path / "to").iterdir()] == ["mine.txt"]


def test_a_tokenizer_of_another_model(tmp_path: Path, small: bytes, shared_data: Path) -> None:
    (tmp_path / "m.bin").write_bytes(small)
    other = shared_data / "checkpoints" / "tok512.bin"
    with pytest.raises(CheckpointError, match="has 512 tokens"):
        foreign.import_model(tmp_path / "m.bin", tmp_path / "to", tokenizer=other)
    with pytest.raises(TokenizerError):
        foreign.import_model(tmp_path / "m.bin", tmp_path / "to", tokenizer=tmp_path / "m.bin")
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no format that is known here"),
        (b"GGUF\x03\0\0\0" + bytes(300), "a GGUF file"),
        (b"PK\x03\x04" + bytes(300), "zip archive"),
        (b"\x80\x04\x95" + bytes(300), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "LFS pointer"),
        (b"<!doctype html><html>" + b" " * 300, "HTML page"),
        (b"\x40\0\0\0\0\0\0\0{" + b" " * 300, "safetensors"),
        (b"hello, this is a text of some length and no model", "no format"),
    ],
)
def test_what_it_is_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        foreign.import_model(tmp_path / "m.bin", tmp_path / "to")
    assert "llama2.c" in str(caught.value) and not (tmp_path / "to").exists()


def test_a_folder_or_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="needs no import"):
        foreign.import_model(tmp_path, tmp_path / "to")
    with pytest.raises(CheckpointError, match="No such file"):
        foreign.import_model(tmp_path / "absent", tmp_path / "to")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (struct.pack("<Ii", 0x616B3432, 2), "int8 weights"),
        (struct.pack("<Ii", 0x616B3432, 7), "version 7"),
        (struct.pack("<Ii", 0x616B3432, -1), "version -1"),
        (struct.pack("<Ii", 0x616B3432, 1), "cut off"),
        (
            struct.pack("<Ii7i", 0x616B3432, 1, 8, 8, 1, 0, 2, 9, 9).ljust(300, b"\0"),
            "n_heads is 0",
        ),
        (
            struct.pack("<Ii7i", 0x616B3432, 1, 8, 8, 1, 2, 2, -9, 9).ljust(300, b"\0"),
            "vocab_size is -9",
        ),
        (struct.pack("<7i", 9, 8, 1, 2, 2, 9, 9).ljust(300, b"\0"), "not a multiple"),
        (struct.pack("<7i", 8, 8, 1, 4, 3, 9, 9).ljust(300, b"\0"), "not a multiple"),
        (struct.pack("<7i", 65536, 1 << 20, 1024, 64, 8, 1 << 22, 512), "has 28 bytes"),
        (struct.pack("<7i", 1 << 20, 8, 1, 4, 4, 9, 9), "d_model"),
        (struct.pack("<7i", 8, 8, 1 << 20, 4, 4, 9, 9), "n_layers"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(
    tmp_path: Path, start: bytes, message: str, no_side_effects: Callable[[], Any]
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(start)
    tracemalloc.start()
    with no_side_effects(), pytest.raises(CheckpointError, match=message):
        foreign.import_model(path, tmp_path / "to")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000


def test_every_truncation_and_what_is_appended(tmp_path: Path, small: bytes) -> None:
    path = tmp_path / "m.bin"
    for size in [*range(40), *range(40, len(small), len(small) // 50), len(small) - 1]:
        path.write_bytes(small[:size])
        with pytest.raises(CheckpointError):
            llama2c.read(path)
    path.write_bytes(small + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match="bytes; a model of the shape"):
        llama2c.read(path)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_changed_file_opens_or_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, small: bytes, data: st.DataObject
) -> None:
    raw = bytearray(small)
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 30) | st.integers(0, len(raw) - 1))] = data.draw(
            st.integers(0, 255)
        )
    path = tmp_path_factory.mktemp("changed") / "m.bin"
    path.write_bytes(bytes(raw))
    try:
        model = llama2c.read(path)
    except InkstoneError as error:
        assert str(path) in str(error)
    else:
        assert math.prod(model(torch.tensor([[1, 2]])).shape) > 0


def test_nan_is_named(tmp_path: Path, small: bytes) -> None:
    raw = bytearray(small)
    raw[28:32] = struct.pack("<f", float("nan"))
    (tmp_path / "m.bin").write_bytes(bytes(raw))
    with pytest.raises(CheckpointError, match=r"embed\.weight holds NaN"):
        llama2c.read(tmp_path / "m.bin")
