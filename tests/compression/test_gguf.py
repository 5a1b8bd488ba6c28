"""What stands in a GGUF file, read back with the library that defines it and with transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.checkpoint import save_model
from inkstone.compression.export import Source, export, formats
from inkstone.errors import ModelError, TokenizerError, UsageError
from tests.compression.conftest import learned, shaken, tokenizer

gguf = pytest.importorskip("gguf", reason="pip install 'inkstone[export]'")
Make = Callable[..., Source]
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {"n_kv_heads": 2, "tied_head": False},
    "qwen3": {"n_kv_heads": 2, "head_dim": 32, "qk_norm": True},
    "mistral": {"n_kv_heads": 2, "sliding_window": 50},
    "llama-3.1": {"rope_factor": 8.0, "rope_length": 32, "head_dim": 32},
}


def model_of(case: str) -> Any:
    name = case if case == "gpt2" else "llama"
    return shaken(name, tokenizer(), **FAMILIES[case])


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    return keys, tensors


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
def test_weights_come_back(kind: str, source: Make, tmp_path: Path) -> None:
    model = model_of("llama")
    before = {name: p.clone() for name, p in model.named_parameters()}
    done = export(source(model, tokenizer()), tmp_path / "x.gguf", "gguf", kind=kind)
    keys, tensors = read(done.path)
    assert keys["general.file_type"] == {"f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2}[kind]
    assert done.n_bytes == done.path.stat().st_size
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), "an export changes no weight"
    ours = {
        "token_embd.weight": model.embed.weight, "output.weight": model.head.weight,
        "blk.1.ffn_down.weight": model.blocks[1].down.weight,
        "blk.0.attn_v.weight": model.blocks[0].v.weight,
        "blk.0.attn_norm.weight": model.blocks[0].attention_norm.weight,
    }  # fmt: skip
    for name, p in ours.items():
        wanted, found = p.detach(), torch.from_numpy(tensors[name].copy())
        assert found.shape == wanted.shape
        if wanted.ndim == 1:
            assert torch.equal(found, wanted)
        elif kind in ("f16", "bf16"):
            low = torch.float16 if kind == "f16" else torch.bfloat16
            assert torch.equal(found, wanted.to(low).float()), name
        else:  # of each block of 32 half a step (a whole one at the end), and the scale is fp16
            blocks = wanted.unflatten(-1, (-1, 32)).abs().amax(-1, keepdim=True)
            steps = 127 if kind == "q8_0" or name == "output.weight" else 8
            bound = blocks * ((0.57 if steps == 127 else 1.01) / steps) + 1e-7
            assert bool(((found - wanted).unflatten(-1, (-1, 32)).abs() <= bound).all()), name


@pytest.mark.parametrize("case", ["gpt2", "llama", "qwen3"])  # it does not read rope_freqs
def test_transformers_opens_it_and_says_the_same(
    case: str, source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # it takes for granted what it does not read: d_ff and context of GPT-2, head_dim of Qwen3
    taken = {"gpt2": {"d_ff": 256, "max_seq_len": 1024}, "qwen3": {"head_dim": 128}}.get(case, {})
    words, name = tokenizer(), "gpt2" if case == "gpt2" else "llama"
    model = shaken(name, words, **{**FAMILIES[case], **taken})
    export(source(model, words), tmp_path / "x.gguf", "gguf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file="x.gguf", dtype=torch.float32
    ).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        difference = (theirs(ids).logits - model(ids)).abs().max()
    assert difference < 2e-2, f"{difference}"  # the weights were rounded to fp16


def test_shape_and_tokens(source: Make, tmp_path: Path) -> None:
    words = tokenizer()
    model = shaken("llama", words, n_kv_heads=2, rope_theta=5e5, norm_eps=1e-6)
    done = export(source(model, words, name="Poet", license="mit"), tmp_path / "a.gguf", "gguf")
    keys, tensors = read(done.path)
    shape = {
        "general.architecture": "llama", "general.name": "Poet", "general.license": "mit",
        "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 5e5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.bos_token_id": words.eos_id, "tokenizer.ggml.eos_token_id": words.eos_id,
    }  # fmt: skip
    assert {name: keys.get(name) for name in shape} == pytest.approx(shape)
    assert "output.weight" not in tensors, "the head is the embedding"
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert len(tokens) == len(kinds) == model.config.vocab_size
    control = {i for i, kind in enumerate(kinds) if kind == 3}
    assert control == set(words.special_ids)
    assert set(range(words.vocab_size, len(tokens))) == {i for i, k in enumerate(kinds) if k == 5}
    assert "tokenizer.chat_template" not in keys, "it was taught no dialogue"


def test_a_model_that_talks_brings_its_template(source: Make, tmp_path: Path) -> None:
    words = tokenizer()
    talks = source(model_of("gpt2"), words, dialogue_trained=True)
    keys, _ = read(export(talks, tmp_path / "a.gguf", "gguf").path)
    assert keys["tokenizer.chat_template"] == words.chat_template
    assert keys["tokenizer.ggml.eot_token_id"] == words.backend.token_to_id("<|end|>")
    assert keys["tokenizer.ggml.add_bos_token"] is False, "no conversation began with it"


def test_a_window_shortens_the_context(source: Make, tmp_path: Path) -> None:
    done = export(source(model_of("mistral"), tokenizer()), tmp_path / "a.gguf", "gguf")
    assert done.facts["context"] == 50 and "50 tokens" in done.notes[0]
    banded = export(
        source(shaken("gpt3", tokenizer(), band=30), tokenizer()), tmp_path / "b.gguf", "gguf"
    )
    assert read(banded.path)[1]["position_embd.weight"].shape == (30, 64)
    whole = export(
        source(shaken("gpt3", tokenizer(), band=None), tokenizer()), tmp_path / "c.gguf", "gguf"
    )
    assert whole.facts["context"] == 128 and not whole.notes


def test_a_row_that_no_block_fits_stays_f16(source: Make, tmp_path: Path) -> None:
    model = shaken("llama", tokenizer(), d_ff=172)
    done = export(source(model, tokenizer()), tmp_path / "a.gguf", "gguf", kind="q4_0")
    assert done.notes == ["2 matrices stay f16: rows of 172 are no multiple of 32"]
    assert done.facts["tensors"] == {"q8_0": 1, "f32": 5, "q4_0": 12, "f16": 2}


def test_encoders(source: Make, tmp_path: Path) -> None:
    words = tokenizer("wordpiece", roles="bert")
    bare = shaken("bert", words, head="mlm")
    done = export(source(bare, words), tmp_path / "a.gguf", "gguf")
    keys, tensors = read(done.path)
    assert keys["bert.pooling_type"] == 1 and keys["bert.attention.causal"] is False
    assert keys["tokenizer.ggml.model"] == "bert"
    assert "the head over words is left out" in done.notes[0]
    tokens = keys["tokenizer.ggml.tokens"]
    assert "[CLS]" in tokens and "▁the" in tokens and not any(t.startswith("##") for t in tokens)
    labelled = shaken("bert", words, head="sequence", n_labels=2)
    told = source(labelled, words, labels=["good", "bad"])
    keys, tensors = read(export(told, tmp_path / "b.gguf", "gguf").path)
    assert keys["bert.classifier.output_labels"] == ["good", "bad"]
    assert tensors["cls.output.weight"].shape == (2, 64)
    roberta = tokenizer("bpe", "gpt2", "roberta")
    beginning = shaken("roberta", roberta, head="none")
    keys, tensors = read(export(source(beginning, roberta), tmp_path / "c.gguf", "gguf").path)
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert tensors["position_embd.weight"].shape == (128, 64), "rows before the first are gone"
    assert np.array_equal(
        tensors["position_embd.weight"], beginning.position.weight[2:].detach().numpy()
    )


@pytest.mark.parametrize(
    ("kind", "why"), [("unigram", "unigram"), ("word", "word"), ("char", "char")]
)
def test_a_tokenizer_that_it_does_not_have(
    kind: str, why: str, source: Make, tmp_path: Path
) -> None:
    words = tokenizer(kind)
    with pytest.raises(TokenizerError, match=why) as raised:
        export(source(shaken("gpt2", words), words), tmp_path / "a.gguf", "gguf")
    assert raised.value.fix and list(tmp_path.iterdir()) == []


def test_bytes_have_no_merges(source: Make, tmp_path: Path) -> None:
    words = tokenizer("byte")
    keys, _ = read(export(source(shaken("gpt2", words), words), tmp_path / "a", "gguf").path)
    assert keys["tokenizer.ggml.pre"] == "gpt-2" and len(keys["tokenizer.ggml.merges"]) == 1


def test_a_pattern_that_it_does_not_have(source: Make, tmp_path: Path) -> None:
    tree = json.loads(tokenizer().backend.to_str())
    tree["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    from inkstone.tokenizers.tokenizer import Tokenizer

    words = Tokenizer.load(tmp_path)
    with pytest.raises(TokenizerError, match="pattern"):
        export(source(shaken("gpt2", words), words), tmp_path / "a.gguf", "gguf")


def test_a_token_that_no_merge_makes(source: Make, tmp_path: Path) -> None:
    """Where whole words come first it is used; where all is merged it never is."""
    from inkstone.tokenizers.tokenizer import Tokenizer

    def written(pattern: str, ignore: bool, name: str) -> str:
        tree = json.loads(tokenizer("bpe", pattern).backend.to_str())
        tree["model"]["merges"].pop()
        tree["model"]["ignore_merges"] = ignore
        (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
        words = Tokenizer.load(tmp_path)
        done = export(source(shaken("gpt2", words), words), tmp_path / name, "gguf")
        return str(done.facts["tokenizer"])

    assert written("modern", False, "a") == "gpt2, smaug-bpe"
    assert written("modern", True, "b") == "gpt2, llama-bpe"
    assert written("gpt2", False, "c") == "gpt2, gpt-2"
    with pytest.raises(TokenizerError, match="cannot be merged"):
        written("gpt2", True, "d")


@pytest.mark.parametrize(
    ("family", "extra", "why"),
    [
        ("lamda", {}, "lamda models have no form in GGUF"),
        ("bert", {"head": "token"}, "no head over tokens"),
        ("distilbert", {"head": "sequence"}, "ReLU"),
        ("llama", {"qk_norm": True, "rope_factor": 4.0}, "stretched"),
    ],
)
def test_a_network_that_it_does_not_have(
    family: str, extra: dict[str, Any], why: str, source: Make, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=why):
        export(source(shaken(family, tokenizer(), **extra), tokenizer()), tmp_path / "a", "gguf")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_or_left(source: Make, tmp_path: Path) -> None:
    target = tmp_path / "a.gguf"
    target.write_text("mine")
    made = source(model_of("gpt2"), tokenizer())
    with pytest.raises(UsageError, match="there already"):
        export(made, target, "gguf")
    assert target.read_text() == "mine"
    with pytest.raises(UsageError, match="did you mean 'q8_0'"):
        export(made, tmp_path / "b", "gguf", kind="q8")
    with pytest.raises(UsageError, match="gguf"):
        export(made, tmp_path / "b", "ggml")
    with torch.no_grad():
        made.model.blocks[1].up.weight[0, 0] = 1e6
    with pytest.raises(ModelError, match=r"ffn_up\.weight .* fp16"):
        export(made, tmp_path / "b", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]
    assert export(made, tmp_path / "b", "gguf", kind="bf16").n_bytes > 0


def test_formats_are_the_files_of_a_folder() -> None:
    assert formats() == ["ctranslate2", "gguf", "onnx"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from inkstone.cli.main import main

    (tmp_path / "model").mkdir()
    save_model(tmp_path / "model", learned("gpt2"), tokenizer())
    out = str(tmp_path / "a.gguf")
    arguments = ["export", str(tmp_path / "model"), "--to", "gguf", "--out", out]
    assert main([*arguments, "--type", "q8_0", "--json"]) == 0
    told = capsys.readouterr()
    facts = json.loads(told.out)
    assert facts["architecture"] == "gpt2" and facts["bytes"] == Path(out).stat().st_size
    assert "export" in told.err
    assert main(arguments) == 2
    assert "there already" in capsys.readouterr().err
