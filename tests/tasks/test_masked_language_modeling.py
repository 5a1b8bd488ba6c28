"""Masking hides what the paper says and nothing else; losses equal transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from inkstone import registry
from inkstone.corpora.shards import Corpus
from inkstone.errors import DataError, UsageError
from inkstone.models import bert
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks.masked_language_modeling import Config, MaskedBatch, Objective, mask
from inkstone.tokenizers.tokenizer import Tokenizer

Tokenizers = dict[str, Tokenizer]
MakeCorpus = Callable[..., Corpus]
SHAPE = {"max_seq_len": 32, "d_model": 32, "n_layers": 2, "n_heads": 4, "d_ff": 48, "dropout": 0.0}


def objective(tokenizer: Tokenizer, seq_len: int = 32, **settings: Any) -> Objective:
    return Objective(Config(**settings), tokenizer, seq_len)


def lots(made: Objective, rows: int = 400) -> tuple[np.ndarray[Any, Any], ...]:
    """Random rows with control tokens among them, what is read, and what is to be said."""
    random = np.random.default_rng(1)
    original = random.choice(made.boundaries.words, (rows, 60))
    original[:, ::10] = made.codec.end_id
    done = [mask(row, made.random(0, n), made.config, made.mask_id, made.boundaries)
            for n, row in enumerate(original)]  # fmt: skip
    return original, np.stack([x for x, _ in done]), np.stack([y for _, y in done])


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_fifteen_percent_are_targets_eighty_ten_ten(
    tokenizers: Tokenizers, name: str, whole_words: bool
) -> None:
    made = objective(tokenizers[name], whole_words=whole_words)
    original, inputs, targets = lots(made)
    hidden = targets != IGNORE_INDEX
    control = made.boundaries.control[original]
    assert not (hidden & control).any()
    assert (inputs[~hidden] == original[~hidden]).all()
    assert (targets[hidden] == original[hidden]).all()
    share = hidden.sum() / (~control).sum()
    assert share == pytest.approx(0.15, abs=0.01 if not whole_words else 0.03)
    read = inputs[hidden]
    masked, kept = read == made.mask_id, read == original[hidden]
    n = hidden.sum()
    assert masked.mean() == pytest.approx(0.8, abs=4 * (0.16 / n) ** 0.5)
    # one replacement in as many as there are words is the word itself
    stays = 0.1 + 0.1 / len(made.boundaries.words)
    assert kept.mean() == pytest.approx(stays, abs=4 * (0.09 / n) ** 0.5)
    others = read[~masked & ~kept]
    assert not made.boundaries.control[others].any() and len(set(others.tolist())) > 50


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_whole_words_stay_whole(tokenizers: Tokenizers, name: str) -> None:
    made = objective(tokenizers[name], whole_words=True, share=0.3)
    text = "the oldest overwalker, stonewalking over unslow hillrivers. Stonebirds! believable."
    row = np.array(tokenizers[name].encode(text))
    starts = made.boundaries.word_starts(row)
    assert 5 < starts.sum() < len(row)  # several words, some of several pieces
    cut = 0
    for number in range(200):
        _, targets = mask(row, made.random(3, number), made.config, made.mask_id, made.boundaries)
        hidden = targets != IGNORE_INDEX
        assert hidden.any()
        for word in np.split(hidden, np.flatnonzero(starts)[1:]):
            assert word.all() or not word.any()
            cut += len(word) > 1 and bool(word.all())
    assert cut > 50


def test_a_word_is_what_stands_between_spaces_and_marks(tokenizers: Tokenizers) -> None:
    for name in ("bert", "roberta"):
        tokenizer = tokenizers[name]
        ids = np.array(tokenizer.encode("unbelievable walking, 中文 don't"))
        starts = objective(tokenizer).boundaries.word_starts(ids)
        parts = np.split(ids, np.flatnonzero(starts)[1:])
        words = [tokenizer.decode(part.tolist(), skip_special=False).strip() for part in parts]
        assert words[:3] == ["unbelievable", "walking", ","]
        if name == "roberta":
            assert {"中", "文", "don"} <= set(words)


def test_masks_depend_on_seed_and_number_alone(
    tokenizers: Tokenizers, make_corpus: MakeCorpus
) -> None:
    made, corpus = objective(tokenizers["bert"]), make_corpus("bert")

    def batches(tokens: int, seed: int, count: int) -> torch.Tensor:
        stream = made.stream(corpus, tokens=tokens, seed=seed)
        return torch.cat([next(stream).input_ids for _ in range(count)])

    assert torch.equal(batches(256, 5, 6), batches(512, 5, 3))  # 8 and 16 rows a batch
    assert not torch.equal(batches(256, 5, 6), batches(256, 6, 6))


def test_a_row_is_hidden_differently_each_time_it_comes(
    tokenizers: Tokenizers, make_corpus: MakeCorpus
) -> None:
    made = objective(tokenizers["bert"], 16)
    corpus = make_corpus("bert", ["the old walker walked slowly over hills and stones today"])
    stream = made.stream(corpus, tokens=1, seed=0)
    seen = [next(stream) for _ in range(6)]
    assert all(len(batch) == 1 for batch in seen)
    assert len({tuple(batch.targets[0].tolist()) for batch in seen}) > 1


@pytest.mark.parametrize("pairs", ["none", "next_sentence", "sentence_order"])
def test_a_stream_continues_where_it_was_left(
    tokenizers: Tokenizers, make_corpus: MakeCorpus, pairs: str
) -> None:
    made, corpus = objective(tokenizers["bert"], pairs=pairs), make_corpus("bert")
    whole = made.stream(corpus, tokens=256, seed=2)
    batches = [next(whole) for _ in range(30)]
    assert whole.epoch > 1
    left = made.stream(corpus, tokens=256, seed=2)
    for _ in range(11):
        next(left)
    again = made.stream(corpus, tokens=256, seed=2)
    again.load_state(left.state())
    for batch in batches[11:]:
        other = next(again)
        assert torch.equal(batch.input_ids, other.input_ids)
        assert torch.equal(batch.targets, other.targets)


def test_every_token_comes_once_in_held_out_text(
    tokenizers: Tokenizers, make_corpus: MakeCorpus
) -> None:
    made, corpus = objective(tokenizers["bert"]), make_corpus("bert")
    rows = []
    for batch in made.held_out(corpus):
        whole = torch.where(batch.targets != IGNORE_INDEX, batch.targets, batch.input_ids)
        real = torch.ones_like(whole) if batch.attention_mask is None else batch.attention_mask
        for row, mine in zip(whole, real, strict=True):
            ids = row[mine.bool()].tolist()
            assert ids[0] == made.codec.start_id and ids[-1] == made.codec.end_id
            rows += ids[1:-1]
    assert rows == corpus.tokens(0, corpus.n_tokens).tolist()


def _original(batch: MaskedBatch) -> torch.Tensor:
    return torch.where(batch.targets != IGNORE_INDEX, batch.targets, batch.input_ids)


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_labels_of_pairs_are_right(tokenizers: Tokenizers, pairs: str) -> None:
    made = objective(tokenizers["bert"], pairs=pairs)
    words = made.boundaries.words[:80].tolist()
    texts = [words[10 * i : 10 * i + 10] for i in range(8)]  # no word in two of them
    rows = [np.array(text) for text in texts]

    def others(number: int, random: np.random.Generator) -> Any:
        return rows[(number + 1 + int(random.integers(7))) % 8]

    follows = 0
    for seed in range(20):
        batch = made.collate(range(8), rows, seed, others)
        assert batch.labels is not None and batch.token_types is not None
        for n, (ids, types, label) in enumerate(
            zip(_original(batch), batch.token_types, batch.labels, strict=True)
        ):
            real = ids != made.codec.pad_id
            ids, types = ids[real].tolist(), types[real].tolist()
            ends = [i for i, token in enumerate(ids) if token == made.codec.end_id]
            first, second = ids[1 : ends[0]], ids[ends[0] + 1 : ends[1]]
            assert ids[0] == made.codec.start_id and ends[1] == len(ids) - 1
            assert types == [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)
            if int(label) == 0:
                assert [*first, *second] == texts[n][: len(first) + len(second)]
                follows += 1
            elif pairs == "sentence_order":
                assert [*second, *first] == texts[n][: len(first) + len(second)]
            else:
                assert not set(second) & set(texts[n])
    assert 55 < follows < 105  # of 160


def test_next_sentences_come_from_another_document(
    tokenizers: Tokenizers, make_corpus: MakeCorpus
) -> None:
    made = objective(tokenizers["bert"], pairs="next_sentence")
    with pytest.raises(DataError, match="one document"):
        made.stream(make_corpus("bert", ["the old walker walked slowly"]), tokens=64, seed=0)
    with pytest.raises(UsageError, match="roberta models know no second text"):
        made.fields(registry.load("models", "roberta"))
    assert made.fields(bert) == {"head": "pretraining"}


def model_for(made: Objective, family: str) -> Any:
    module = registry.load("models", family)
    torch.manual_seed(4)
    fields = {**SHAPE, **made.fields(module), "vocab_size": made.tokenizer.vocab_size}
    model = module.Model(module.Config(**fields))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def test_any_split_of_a_step_gives_the_same_loss(
    tokenizers: Tokenizers, make_corpus: MakeCorpus
) -> None:
    made = objective(tokenizers["bert"], pairs="next_sentence")
    batch = next(made.stream(make_corpus("bert"), tokens=320, seed=0))
    assert len({int((row != IGNORE_INDEX).sum()) for row in batch.targets}) > 1
    model = model_for(made, "bert")
    whole = float(made.loss(model, batch)[0].detach())
    parts = sum(float(made.loss(model, part)[0].detach()) for part in batch.split(3))
    assert parts == pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_the_loss_is_that_of_transformers(
    tokenizers: Tokenizers, make_corpus: MakeCorpus, family: str, tmp_path: Any, monkeypatch: Any
) -> None:
    name = "roberta" if family in ("roberta", "modernbert") else "bert"
    _compare(objective(tokenizers[name]), family, make_corpus(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("pairs", ["next_sentence", "sentence_order"])
def test_the_loss_of_pairs_is_that_of_transformers(
    tokenizers: Tokenizers, make_corpus: MakeCorpus, pairs: str, tmp_path: Any, monkeypatch: Any
) -> None:
    made = objective(tokenizers["bert"], pairs=pairs)
    _compare(made, "bert", make_corpus("bert"), tmp_path, monkeypatch)


def _compare(made: Objective, family: str, corpus: Corpus, folder: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    from inkstone.checkpoint import save_model

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = model_for(made, family).eval()
    save_model(folder, model, made.tokenizer)
    named = json.loads((folder / "config.json").read_text())["architectures"][0]
    theirs = getattr(transformers, named).from_pretrained(folder).eval()
    batch = next(made.stream(corpus, tokens=300, seed=1))
    real = torch.ones_like(batch.input_ids)
    if batch.attention_mask is not None:
        real = batch.attention_mask.long()
    options: dict[str, Any] = {"labels": batch.targets, "attention_mask": real}
    if batch.token_types is not None:
        options |= {"token_type_ids": batch.token_types, "next_sentence_label": batch.labels}
    with torch.no_grad():
        expected = float(theirs(batch.input_ids, **options).loss)
        total, count = made.loss(model, batch)
    assert count == batch.n_targets
    assert float(total.detach()) / count == pytest.approx(expected, rel=1e-5)


def test_operations_and_density_are_counted(tokenizers: Tokenizers) -> None:
    made = objective(tokenizers["bert"])
    config = bert.Config(vocab_size=made.tokenizer.vocab_size, **SHAPE)  # type: ignore[arg-type]
    batch = made.example(40)
    assert made.density == pytest.approx(batch.n_targets / batch.input_ids.numel(), rel=0.15)
    everything = bert.flops_per_token(config, 32)
    assert 0.5 * everything < made.flops_per_token(bert, config) < everything
