"""CTranslate2 writes what we write, from a folder of ours or from its own converter's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.checkpoint import save_model
from inkstone.compression.export import Source, export
from inkstone.errors import ModelError, TokenizerError
from inkstone.inference.beam import BeamConfig, translate
from inkstone.models import transformer
from inkstone.tokenizers.tokenizer import Tokenizer
from tests.compression.conftest import SHAPE, shaken, tokenizer

ct2 = pytest.importorskip("ctranslate2", reason="requirements-dev.txt")
Make = Callable[..., Source]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", {}),
    "pre-norm": ("transformer", {"pre_norm": True}),
    "learned": (
        "transformer",
        {"positions": "learned", "embedding_norm": True, "scale_embedding": False},
    ),
    "marian": ("marian", {"start_id": 3}),
    "bart": ("bart", {"n_decoder_layers": 3}),
    "gpt2": ("gpt2", {}),
}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    ct2.set_log_level(40)


def translator(**extra: Any) -> tuple[Any, Tokenizer]:
    """Learns to write numbers in words, last digit first."""
    words = tokenizer()
    torch.manual_seed(0)
    size = {"vocab_size": words.vocab_size, "dropout": 0.0}
    model = transformer.Model(transformer.Config.model_validate({**SHAPE, **size, **extra}))
    optimizer = torch.optim.AdamW(model.parameters())
    draw = np.random.default_rng(0)
    for step in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50)
        rows = [draw.integers(0, 10, draw.integers(1, 5)) for _ in range(16)]
        source = [words.encode(" ".join(map(str, row))) for row in rows]
        target = [words.encode(" ".join(NUMBERS[n] for n in row[::-1])) for row in rows]
        s, s_mask = _padded([[*x, words.eos_id] for x in source])
        t, t_mask = _padded([[model.config.start_id, *x, words.eos_id] for x in target])
        logits = model(s, t[:, :-1], source_mask=s_mask, attention_mask=t_mask[:, :-1])
        wanted = torch.where(t_mask, t, -100)[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5, "the model learned nothing"
    return model.eval(), words


def _padded(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), True
    return ids, mask


@pytest.mark.parametrize("pre_norm", [False, True])
def test_beams_write_the_same(pre_norm: bool, source: Make, tmp_path: Path) -> None:
    model, words = translator(pre_norm=pre_norm)
    out = tmp_path / "out"
    export(source(model, words, task="translation"), out, "ctranslate2")
    engine = ct2.Translator(str(out), device="cpu", intra_threads=1)
    texts = ["1 2 3 4", "9 0", "7 7 7", "5", "3 1 4 1"]
    rows = [words.encode(text) for text in texts]
    names = [[words.backend.id_to_token(i) for i in row] for row in rows]
    for width in (1, 4):
        theirs = engine.translate_batch(
            names, beam_size=width, length_penalty=1.0, max_decoding_length=30, patience=1
        )
        ids, mask = _padded([[*row, words.eos_id] for row in rows])
        settings = BeamConfig(n_beams=width, max_tokens=30)
        ours = translate(model, ids, mask, settings, {words.eos_id})
        for found, (best, *_) in zip(theirs, ours, strict=True):
            wanted = [words.backend.id_to_token(i) for i in best.ids if i != words.eos_id]
            assert found.hypotheses[0] == wanted


@pytest.mark.parametrize("case", NETWORKS)
def test_networks(case: str, source: Make, tmp_path: Path) -> None:
    name, extra = NETWORKS[case]
    words = tokenizer()
    model = shaken(name, words, **extra)
    before = {name: p.clone() for name, p in model.named_parameters()}
    done = export(source(model, words), tmp_path / "a", "ctranslate2")
    assert done.facts["max_difference"] < 1e-4
    small = export(source(model, words), tmp_path / "b", "ctranslate2", kind="int8")
    assert small.n_bytes < done.n_bytes and small.facts["max_difference"] < 1.0
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"model.bin", "config.json", "tokenizer.json", "README.md"} <= files


def test_what_it_writes_is_checked(
    source: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inkstone.compression.export import _ctranslate2_specs as module

    monkeypatch.setattr(module, "ACTIVATIONS", {"relu": "GELU"})
    model = shaken("transformer", tokenizer())
    with pytest.raises(ModelError, match="log-probabilities differ"):
        export(source(model, tokenizer()), tmp_path / "a", "ctranslate2")
    with pytest.raises(TokenizerError, match="no tokenizer"):
        export(source(model), tmp_path / "a", "ctranslate2")
    with pytest.raises(ModelError, match="ct2-transformers-converter"):
        export(source(shaken("llama", tokenizer()), tokenizer()), tmp_path / "a", "ctranslate2")
    assert list(tmp_path.iterdir()) == []


# --- folders that its own converter takes as they are --------------------------------------------


def converted(model: Any, words: Tokenizer, folder: Path) -> str:
    """A folder of ours through CTranslate2's converter."""
    (folder / "ours").mkdir()
    save_model(folder / "ours", model, words)
    out = str(folder / "theirs")
    ct2.converters.TransformersConverter(str(folder / "ours")).convert(out)
    return out


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("gpt2", {"d_ff": 256}),  # it asks for an unknown token
        ("llama", {"n_kv_heads": 2}),
        ("llama", {"n_kv_heads": 2, "qk_norm": True}),
        ("llama", {"n_kv_heads": 2, "sliding_window": 64}),  # so does this
    ],
)
def test_decoders_convert_unchanged(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    asks = name == "gpt2" or "sliding_window" in extra
    words = tokenizer("unigram" if asks else "bpe")
    model = shaken(name, words, vocab_size=words.vocab_size, **extra)
    engine = ct2.Generator(converted(model, words, tmp_path), device="cpu", intra_threads=1)
    ids = [words.eos_id, *words.encode("The quick brown fox, 你好 123.")]
    found = engine.forward_batch([ids])
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).numpy()
    assert np.abs(np.array(found) - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ["bert", "distilbert", "roberta"])
def test_encoders_convert_unchanged(name: str, tmp_path: Path) -> None:
    words = tokenizer("wordpiece", roles="bert")
    words = tokenizer("bpe", "gpt2", "roberta") if name == "roberta" else words
    model = shaken(name, words, head="none", vocab_size=words.vocab_size)
    engine = ct2.Encoder(converted(model, words, tmp_path), device="cpu", intra_threads=1)
    ids = words.encode("The quick brown fox, 123.")
    found = np.array(engine.forward_batch([ids]).last_hidden_state)
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).numpy()
    assert np.abs(found - wanted).max() <= 1e-4 * np.abs(wanted).max()


def test_t5_converts_unchanged(tmp_path: Path) -> None:
    words = tokenizer("unigram")
    model = shaken("t5", words)
    engine = ct2.Translator(converted(model, words, tmp_path), device="cpu", intra_threads=1)
    names = [words.backend.id_to_token(i) for i in words.encode("The quick brown fox")]
    scored = engine.score_batch([names], [names])[0].log_probs
    ids = torch.tensor([[*words.encode("The quick brown fox"), words.eos_id]])
    start = torch.tensor([[model.config.start_id]])
    with torch.no_grad():
        logits = model(ids[:, :-1], torch.cat([start, ids[:, :-1]], 1))
    wanted = torch.log_softmax(logits, -1).gather(2, ids[:, :, None])[0, :, 0]
    assert np.abs(np.array(scored) - wanted.numpy()).max() <= 1e-3
