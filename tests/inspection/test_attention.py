"""Attention weights against transformers' own, and what must hold for every family with some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inkstone.checkpoint import save_model
from inkstone.errors import ModelError, UsageError
from inkstone.inference.predict import Predictor, connect
from inkstone.inspection.attention import attention, has_attention, watched, weights
from inkstone.models import (
    bart,
    bert,
    distilbert,
    gpt2,
    gpt3,
    lamda,
    llama,
    lstm,
    marian,
    modernbert,
    pointer_generator,
    rnn_seq2seq,
    t5,
    transformer,
)
from inkstone.tasks import translation
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TEXT = "the cat sat on the mat, and the dog on the log"
SMALL: dict[str, Any] = {"max_seq_len": 160, "d_model": 32, "n_layers": 3, "n_heads": 4}
CAUSAL = [(gpt2, {}), (gpt3, {"band": 4}), (llama, {"n_kv_heads": 2}), (lamda, {})]
BOTH_WAYS = [(bert, {}), (distilbert, {}), (modernbert, {})]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([TEXT], TokenizerConfig(kind="byte"))


def _model(module: Any, tokenizer: Tokenizer, **more: Any) -> Any:
    torch.manual_seed(0)
    known = module.Config.model_fields
    shape = {k: v for k, v in {**SMALL, **more}.items() if k in known}
    model = module.Model(module.Config(vocab_size=tokenizer.vocab_size, **shape)).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(5.0)  # so that weights differ
    return model


@pytest.mark.parametrize(
    ("module", "more"), CAUSAL + BOTH_WAYS, ids=lambda x: getattr(x, "__name__", "")
)
def test_rows_sum_to_one(module: Any, more: dict[str, Any], tokenizer: Tokenizer) -> None:
    model = _model(module, tokenizer, **more)
    found = attention(model, tokenizer, TEXT)
    n = len(found.rows)
    assert found.weights.shape == (3, 4, n, n) and found.rows == found.columns and not found.cut
    assert TEXT in "".join(found.rows)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3, 4, n))
    ahead = found.weights.triu(1)
    assert (ahead.max() == 0) == (module.KIND == "causal"), "who may look ahead"
    assert found.weights[..., 1:, :].std() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_they_are_those_of_transformers(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = _model({"gpt2": gpt2, "bert": bert}[name], tokenizer)
    save_model(tmp_path, model, tokenizer)
    theirs = transformers.AutoModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    found = attention(model, tokenizer, TEXT)
    before, after = tokenizer.frame()
    ids = torch.tensor([[*before, *tokenizer.encode(TEXT), *after]])
    with torch.no_grad():
        expected = theirs(ids, output_attentions=True).attentions
    torch.testing.assert_close(found.weights, torch.cat(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [transformer, marian, bart, t5, pointer_generator])
def test_what_is_written_looks_at_what_is_read(module: Any, tokenizer: Tokenizer) -> None:
    model = _model(module, tokenizer, n_decoder_layers=2, d_ff=64, start_id=0)
    task = translation.Task(translation.Config(n_beams=1), [])
    connect(task, tokenizer)
    predictor: Any = Predictor(task, model, "seq2seq", tokenizer, 64)
    assert has_attention(model, predictor) and not has_attention(model)
    found = attention(model, tokenizer, "the cat", predictor=predictor)
    assert "".join(found.columns[:-1]) == "the cat" and not found.cut
    assert found.weights.shape == (2, 4, len(found.rows), len(found.columns))
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(found.weights.shape[:3]))
    assert attention(model, tokenizer, TEXT * 9, predictor=predictor).cut
    assert not has_attention(rnn_seq2seq.Model(rnn_seq2seq.Config(vocab_size=300)), predictor)


def test_windows_hide_what_they_hide(tokenizer: Tokenizer) -> None:
    found = attention(_model(gpt3, tokenizer, band=4), tokenizer, TEXT)
    far = torch.ones(len(found.rows), len(found.rows)).tril(-4).bool()
    banded = [bool((layer[:, far] == 0).all()) for layer in found.weights]
    assert any(banded) and not all(banded)


def test_long_texts_are_cut(tokenizer: Tokenizer) -> None:
    found = attention(_model(gpt2, tokenizer), tokenizer, TEXT * 50)
    assert found.cut and len(found.rows) == 128
    with pytest.raises(UsageError, match="empty"):
        attention(_model(gpt2, tokenizer), tokenizer, "")


def test_nothing_changes_and_nothing_is_made_up(tokenizer: Tokenizer) -> None:
    model = _model(gpt2, tokenizer).train()
    ids = torch.tensor([tokenizer.encode(TEXT)])
    attention(model, tokenizer, TEXT)
    assert model.training
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(ids), model(ids))
    with pytest.raises(ModelError, match="kernel"):
        watched(model, lambda: None)
    plain = lstm.Model(lstm.Config(vocab_size=tokenizer.vocab_size, hidden_size=8))
    assert not has_attention(plain) and not has_attention(None)
    with pytest.raises(ModelError, match="no attention"):
        attention(plain, tokenizer, TEXT)


def test_the_formula() -> None:
    """The weights times the values are what torch's kernel gives, whatever it is given."""
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 7, 8), torch.randn(1, 2, 7, 8)
    some = torch.rand(1, 1, 5, 7) > 0.3
    some[..., 0] = True
    for options in ({}, {"attn_mask": some}, {"attn_mask": torch.randn(1, 4, 5, 7), "scale": 1.0}):
        options = {**options, "enable_gqa": True}
        expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
        found = weights(q, k, **options) @ v.repeat_interleave(2, 1)
        torch.testing.assert_close(found, expected)
