"""The check tells a model that learned where texts end from one that did not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inkstone.errors import DataError, UsageError
from inkstone.evaluation.ending import stops_by_itself
from inkstone.inference import Generator
from inkstone.models import llama
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TEXTS = [f"{a} and {b}." for a in ("one", "two", "three", "ten") for b in ("six", "nine", "four")]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(["any text"], TokenizerConfig(kind="byte"))


def _trained(tokenizer: Tokenizer, *, end_is_learned: bool) -> Any:
    torch.manual_seed(0)
    shape = {"max_seq_len": 32, "d_model": 32, "n_layers": 1, "n_heads": 2}
    model = llama.Model(llama.Config(vocab_size=tokenizer.vocab_size, **shape))
    eos = tokenizer.eos_id
    rows = [[eos, *tokenizer.encode(t), eos] for t in TEXTS]
    width = max(map(len, rows))
    padded = torch.tensor([row + [eos] * (width - len(row)) for row in rows])
    targets = padded[:, 1:].clone()
    for i, row in enumerate(rows):
        targets[i, len(row) - 1 :] = IGNORE_INDEX
    if not end_is_learned:
        targets[targets == eos] = IGNORE_INDEX
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        hidden = model.hidden(padded[:, :-1])
        loss, count = chunked_cross_entropy(
            hidden.flatten(0, 1), model.head_weight, targets.flatten()
        )
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    return model


def test_a_model_that_learned_the_end(tokenizer: Tokenizer) -> None:
    report = stops_by_itself(
        Generator(_trained(tokenizer, end_is_learned=True), tokenizer), TEXTS, n=10
    )
    assert report.learned and "is learned" in str(report)
    assert report.documents == 10
    assert report.at_end > 0.5 > 10 * report.elsewhere and report.rank_at_end == 1
    assert report.given == pytest.approx(report.expected, rel=0.3)
    assert report.ended == report.samples == 8


def test_a_model_that_never_saw_the_end(tokenizer: Tokenizer) -> None:
    generator = Generator(_trained(tokenizer, end_is_learned=False), tokenizer)
    report = stops_by_itself(generator, TEXTS)
    assert not report.learned and "NOT learned" in str(report)
    assert report.ended < report.samples / 2
    assert report == stops_by_itself(generator, TEXTS)  # the same numbers every time


def test_an_untrained_model_and_long_documents(tokenizer: Tokenizer) -> None:
    shape = {"max_seq_len": 32, "d_model": 8, "n_layers": 1, "n_heads": 1}
    model = llama.Model(llama.Config(vocab_size=tokenizer.vocab_size, **shape))
    model.train()
    texts = ["a long document " * 50, "", "b"]
    report = stops_by_itself(Generator(model, tokenizer), texts, samples=0)
    assert report.documents == 2 and report.samples == report.ended == 0
    assert not report.learned
    assert model.training


def test_nothing_to_look_at_is_an_error(tokenizer: Tokenizer) -> None:
    shape = {"max_seq_len": 32, "d_model": 8, "n_layers": 1, "n_heads": 1}
    model = llama.Model(llama.Config(vocab_size=tokenizer.vocab_size, **shape))
    with pytest.raises(DataError, match="held-out"):
        stops_by_itself(Generator(model, tokenizer), [])
    with pytest.raises(UsageError, match="tokenizer"):
        stops_by_itself(Generator(model, None), ["x"])
