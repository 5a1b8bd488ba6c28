"""Scores equal a slow loop; every token counts once; the rule is printed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.errors import DataError, UsageError
from inkstone.evaluation.perplexity import _windows, perplexity, score_tokens
from inkstone.models import gpt2, llama
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TEXTS = ["The first document, a little longer than a window.", "Kurz.", "你好，世界", "x" * 37]
CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["any text"], TokenizerConfig(kind="byte"))


@pytest.fixture(scope="module", params=[gpt2, llama], ids=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Any:
    torch.manual_seed(0)
    shape = {"max_seq_len": CONTEXT, "d_model": 16, "n_layers": 2, "n_heads": 2}
    model = request.param.Model(request.param.Config(vocab_size=tokenizer.vocab_size, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(5.0)
    return model


def _stream(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    ids = [tokenizer.eos_id]
    for text in texts:
        ids += [*tokenizer.encode(text), tokenizer.eos_id]
    return ids


@torch.no_grad()
def _slowly(model: Any, ids: list[int], seq_len: int, stride: int | None) -> float:
    """One token at a time: which tokens it may see is written out for each."""
    nats = 0.0
    for t in range(1, len(ids)):
        if stride is None or stride == seq_len:
            first = (t - 1) // seq_len * seq_len
        elif t <= seq_len:
            first = 0
        else:
            last = min(seq_len + math.ceil((t - seq_len) / stride) * stride, len(ids) - 1)
            first = last - seq_len
        scores = model(torch.tensor([ids[first:t]]))[0, -1].double().log_softmax(-1)
        nats -= float(scores[ids[t]])
    return nats


@pytest.mark.parametrize(
    ("seq_len", "stride"),
    [(None, None), (5, None), (1, None), (16, 16), (16, 8), (16, 1), (10, 3), (7, 7)],
)
def test_equals_a_slow_loop(
    model: Any, tokenizer: Tokenizer, seq_len: int | None, stride: int | None
) -> None:
    rule: Any = "windows" if stride is None else "stride"
    report = perplexity(model, tokenizer, TEXTS, rule=rule, stride=stride, seq_len=seq_len)
    ids = _stream(tokenizer, TEXTS)
    expected = _slowly(model, ids, seq_len or CONTEXT, stride)
    assert report.nats == pytest.approx(expected, rel=1e-5)
    assert report.tokens == len(ids) - 1
    assert report.bytes == sum(len(t.encode()) for t in TEXTS)
    assert report.documents == 4 and report.unknown == 0
    assert report.perplexity == pytest.approx(math.exp(expected / report.tokens), rel=1e-5)
    assert report.bits_per_byte == pytest.approx(expected / math.log(2) / report.bytes, rel=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), max_size=8),
    seq_len=st.integers(1, 20),
    share=st.integers(1, 20),
)
def test_every_token_is_scored_exactly_once(sizes: list[int], seq_len: int, share: int) -> None:
    step = min(share, seq_len)
    total = 1 + sum(sizes)
    ids = np.arange(total)
    cuts = np.cumsum([1, *sizes])[:-1]
    seen: list[int] = []
    for window, fresh in _windows(np.split(ids, cuts), seq_len, step):
        assert 2 <= len(window) <= seq_len + 1
        np.testing.assert_array_equal(window, np.arange(window[0], window[0] + len(window)))
        new = window[-fresh:].tolist()
        seen += new
        # the least context a scored token has: one token, or what the stride leaves
        least = min(new[0], 1 if step == seq_len else seq_len - step + 1)
        assert new[0] - window[0] >= least
    assert seen == list(range(1, total))


def test_the_rule_says_how_to_repeat_it(model: Any, tokenizer: Tokenizer) -> None:
    windows = perplexity(model, tokenizer, TEXTS)
    assert "separate windows of 16 tokens" in windows.rule and "4 documents" in windows.rule
    stride = perplexity(model, tokenizer, TEXTS, rule="stride", stride=4)
    assert "moved on by 4" in stride.rule
    assert "moved on by 8" in perplexity(model, tokenizer, TEXTS, rule="stride").rule
    as_json = json.loads(json.dumps(windows.to_dict()))
    assert as_json["perplexity"] == windows.perplexity and as_json["rule"] == windows.rule
    assert "bits per byte" in str(windows)


def test_more_context_never_scores_other_tokens(model: Any, tokenizer: Tokenizer) -> None:
    full = perplexity(model, tokenizer, TEXTS, rule="stride", stride=16)
    assert full.nats == pytest.approx(perplexity(model, tokenizer, TEXTS).nats, rel=0.2)


def test_many_small_documents_and_batches(model: Any, tokenizer: Tokenizer) -> None:
    texts = [f"document {i}" for i in range(700)]  # several encoding batches, ragged end
    report = perplexity(model, tokenizer, iter(texts))
    ids = _stream(tokenizer, texts)
    nats, tokens, _ = score_tokens(model, [np.array(ids)])
    assert (report.tokens, report.documents) == (tokens, 700) == (len(ids) - 1, 700)
    assert report.nats == pytest.approx(nats, rel=1e-6)


def test_files_and_folders(model: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\r\ntwo", encoding="utf-8")
    (tmp_path / "b.jsonl").write_text('{"text": "three"}\n{"text": ""}\n', encoding="utf-8")
    report = perplexity(model, tokenizer, tmp_path)
    assert report == perplexity(model, tokenizer, ["one\ntwo", "three"])
    assert report.documents == 2


def test_nothing_to_score_is_an_error(model: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    for data in ([], [""], tmp_path / "a.txt"):
        with pytest.raises(DataError, match="no text"):
            perplexity(model, tokenizer, data)
    with pytest.raises(DataError, match="does not exist"):
        perplexity(model, tokenizer, tmp_path / "b.txt")


def test_lengths_out_of_range_are_named(model: Any, tokenizer: Tokenizer) -> None:
    for seq_len in (0, -1, CONTEXT + 1):
        with pytest.raises(UsageError, match=f"seq_len {seq_len} .*{CONTEXT}"):
            perplexity(model, tokenizer, TEXTS, seq_len=seq_len)
    for stride in (0, -3, CONTEXT + 1):
        with pytest.raises(UsageError, match=f"stride {stride} "):
            perplexity(model, tokenizer, TEXTS, rule="stride", stride=stride)
    with pytest.raises(UsageError, match="rule"):
        perplexity(model, tokenizer, TEXTS, rule="window")  # type: ignore[arg-type]


def test_unknown_words_are_confessed() -> None:
    words = train(["a b c"] * 3, TokenizerConfig(kind="word", min_frequency=1))
    shape = {"max_seq_len": CONTEXT, "d_model": 16, "n_layers": 1, "n_heads": 2}
    model = gpt2.Model(gpt2.Config(vocab_size=words.vocab_size, **shape))
    report = perplexity(model, words, ["a b zebra c"])
    assert report.unknown == 1 and "unknown words" in report.rule


def test_scoring_leaves_the_model_in_training(model: Any, tokenizer: Tokenizer) -> None:
    model.train()
    perplexity(model, tokenizer, TEXTS)
    assert model.training
    model(torch.tensor([[1, 2, 3]])).sum().backward()
    model.eval()
