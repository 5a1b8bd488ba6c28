"""Damage can be undone, is as much as the papers say, and losses equal transformers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone import registry
from inkstone.corpora.shards import Corpus
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import denoising, span_corruption
from inkstone.tasks._corruption import partition
from inkstone.tasks._rewriting import START
from inkstone.tokenizers.tokenizer import Tokenizer

Tokenizers = dict[str, Tokenizer]
SHAPE = {"d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "dropout": 0.0}


def spans(tokenizer: Tokenizer, seq_len: int = 64, **given: Any) -> span_corruption.Objective:
    return span_corruption.Objective(span_corruption.Config(**given), tokenizer, seq_len)


def noise(tokenizer: Tokenizer, seq_len: int = 64, **given: Any) -> denoising.Objective:
    return denoising.Objective(denoising.Config(**given), tokenizer, seq_len)


def repair(made: span_corruption.Objective, source: list[int], target: list[int]) -> list[int]:
    """Put every span where its sentinel stands."""
    missing: dict[int, list[int]] = {}
    for token in target:
        if token in made.sentinels:
            missing[token] = []
        else:
            missing[list(missing)[-1]].append(token)
    whole = []
    for token in source:
        whole += missing[token] if token in made.sentinels else [token]
    return whole


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(2, 300), share=st.floats(0.02, 0.9), mean=st.floats(1, 12),
    number=st.integers(0, 2**40),
)  # fmt: skip
def test_source_and_target_give_the_text_back(
    tokenizers: Tokenizers, length: int, share: float, mean: float, number: int
) -> None:
    made = spans(tokenizers["t5"], 512, share=share, mean_span=mean)
    random = made.random(0, number)
    row = random.choice(made.boundaries.words, length)
    source, target = (x.tolist() for x in made.corrupt(row, random))
    end = made.tokenizer.eos_id
    assert source[-1] == end and target[-1] == end
    used = [token for token in source if token in made.sentinels]
    assert used == made.sentinels[: len(used)] and used
    assert [t for t in target if t in made.sentinels] == made.sentinels[: len(used) + 1]
    assert repair(made, source[:-1], target[:-1]) == row.tolist()
    assert len(source) + len(target) == length + 2 * len(used) + 3
    cut, number_of_spans = made.counts(length)
    assert len(used) == number_of_spans and len(source) == length - cut + number_of_spans + 1


@settings(max_examples=60, deadline=None)
@given(total=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_parts_sum_to_the_whole(total: int, share: float, seed: int) -> None:
    parts = max(1, round(share * total))
    found = partition(total, parts, np.random.default_rng(seed))
    assert len(found) == parts and found.min() >= 1 and found.sum() == total


def test_partitions_are_uniform() -> None:
    random = np.random.default_rng(0)
    drawn = [tuple(partition(6, 3, random).tolist()) for _ in range(10_000)]
    kinds = set(drawn)
    assert len(kinds) == 10  # compositions of 6 into 3
    assert all(800 < drawn.count(kind) < 1200 for kind in kinds)


@pytest.mark.parametrize("seq_len", [16, 64, 128, 512])
def test_rows_fill_the_length_and_never_pass_it(tokenizers: Tokenizers, seq_len: int) -> None:
    made = spans(tokenizers["t5"], seq_len)
    row = np.resize(made.boundaries.words, made.room)
    source, target = made.corrupt(row, made.random(0, 0))
    assert len(source) == seq_len and len(target) <= seq_len
    assert (len(source), len(target)) == made.lengths
    whole = noise(tokenizers["roberta"], seq_len)
    row = np.resize(whole.boundaries.words, whole.room)
    for number in range(50):
        damaged, kept = whole.corrupt(row, whole.random(0, number))
        assert len(damaged) <= seq_len and len(kept) == seq_len


def test_t5_of_the_paper_reads_568_tokens(tokenizers: Tokenizers) -> None:
    """512 in and 114 out, as the authors' code computes; one more for the last sentinel."""
    made = spans(tokenizers["t5"], 512)
    assert made.room == 568 and made.lengths == (512, 115)


def test_infilling_takes_thirty_percent_in_poisson_spans(tokenizers: Tokenizers) -> None:
    made = noise(tokenizers["roberta"], permute_sentences=False)
    row = np.arange(1000, 1200)  # every token once: what is gone can be seen
    gone, lengths = [], []
    for number in range(300):
        left = made.infill(row, made.random(0, number)).tolist()
        kept = [token for token in left if token != made.mask_id]
        assert kept == sorted(kept) and set(kept) <= set(row.tolist())
        gone.append(len(row) - len(kept))
        lengths.append(gone[-1] / left.count(made.mask_id))
    assert set(gone) == {60}
    assert np.mean(lengths) == pytest.approx(3.0, abs=0.15)


def test_sentences_are_permuted_whole(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["roberta"]
    made = noise(tokenizer, share=0.0)
    text = "the old walker walked. Stones! rivers? and birds."
    row = np.array(tokenizer.encode(text))
    found = set()
    for number in range(40):
        source, target = made.corrupt(row, made.random(0, number))
        assert target.tolist() == [made.codec.start_id, *row.tolist(), made.codec.end_id]
        found.add(tokenizer.decode(source.tolist()))
    assert len(found) > 10
    parts = {"the old walker walked.", " Stones!", " rivers?", " and birds."}
    for other in found:
        assert sorted(other) == sorted(text) and all(part in other for part in parts)


@pytest.mark.parametrize("name", ["t5", "roberta"])
def test_a_stream_continues_where_it_was_left(
    tokenizers: Tokenizers, make_corpus: Callable[..., Corpus], name: str
) -> None:
    made: Any = spans(tokenizers[name]) if name == "t5" else noise(tokenizers[name])
    corpus = make_corpus(name)
    whole = made.stream(corpus, tokens=300, seed=2)
    batches = [next(whole) for _ in range(40)]
    assert whole.epoch > 1
    again = made.stream(corpus, tokens=300, seed=2)
    for _ in range(17):
        next(again)
    state = again.state()
    other = made.stream(corpus, tokens=300, seed=2)
    other.load_state(state)
    for batch in batches[17:]:
        mine = next(other)
        assert torch.equal(batch.source_ids, mine.source_ids)
        assert torch.equal(batch.targets, mine.targets)


@pytest.mark.parametrize("family", ["t5", "bart", "transformer"])
def test_the_loss_is_that_of_transformers(
    tokenizers: Tokenizers, make_corpus: Callable[..., Corpus], family: str, tmp_path: Any,
    monkeypatch: Any,
) -> None:  # fmt: skip
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    from inkstone.checkpoint import save_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    name = "t5" if family == "t5" else "roberta"
    made: Any = spans(tokenizers[name]) if name == "t5" else noise(tokenizers[name])
    module = registry.load("models", family)
    torch.manual_seed(0)
    fields = {**SHAPE, **made.fields(module), "vocab_size": made.tokenizer.vocab_size}
    model = module.Model(module.Config(max_seq_len=64, **fields)).eval()
    batch = next(made.stream(make_corpus(name), tokens=300, seed=1))
    total, count = made.loss(model, batch)
    save_model(tmp_path, model, made.tokenizer)
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        out = theirs(
            input_ids=batch.source_ids, attention_mask=batch.source_mask.long(),
            labels=batch.targets,
        )  # fmt: skip
    assert count == int((batch.targets != IGNORE_INDEX).sum()) == batch.n_targets
    assert float(total.detach()) / count == pytest.approx(float(out.loss), rel=1e-5)
    assert (batch.input_ids[:, 0] == START).all()
