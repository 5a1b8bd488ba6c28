"""Pairs that belong together: batches, losses whatever the micro-batch, places of the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from inkstone.errors import DataError, RecipeError
from inkstone.evaluation import scores
from inkstone.models import bert
from inkstone.nn.linear import Embedding
from inkstone.recipe import Recipe
from inkstone.tasks import similarity
from inkstone.tasks._codec import Codec
from inkstone.tasks.similarity import Config, Example, PairBatch, Task
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer


def task(**settings: Any) -> Task:
    return Task(Config(**settings))


def record(**values: Any) -> Record:
    return Record(values, tuple(values), "rows.jsonl", 3)


def batch(of: Task, tokenizer: Tokenizer, examples: list[Example]) -> PairBatch:
    codec = Codec(tokenizer, 32)
    rows = [row for rows in of.encode(examples, codec) for row in rows]
    return of.collate(rows, codec.pad_id)


EXAMPLES = [
    Example("the old walker", "walked slowly"),
    Example("the old walker", "over unbelievable hills"),
    Example("Stones!", "and birds."),
    Example("rivers?", "and birds."),
    Example("hills", "walking over", ("walked slowly", "rivers and hills and birds")),
]


def test_equal_texts_are_read_once(tokenizers: dict[str, Tokenizer]) -> None:
    found = batch(task(negative_field="no"), tokenizers["bert"], EXAMPLES)
    assert found.own is not None and found.pair_ids is not None
    assert found.own.tolist() == [0, 0, 1, 2, 3] and found.targets.tolist() == [0, 1, 2, 2, 3]
    assert len(found.input_ids) == 4 and len(found.pair_ids) == 5  # four pairs, one new negative
    assert len(found) == found.n_targets == 5


@pytest.fixture
def model(tokenizers: dict[str, Tokenizer]) -> bert.Model:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "max_seq_len": 64, "head": "none",
             "dropout": 0.0}  # fmt: skip
    return bert.Model(bert.Config(vocab_size=tokenizers["bert"].vocab_size, **shape))


@pytest.mark.parametrize(
    "settings",
    [{"negative_field": "no"}, {"symmetric": True}, {"pooling": "cls"}, {"score_field": "s"},
     {"score_field": "s", "loss": "cosine", "top_score": 5.0}],
)  # fmt: skip
@pytest.mark.parametrize("pending", [True, False])
def test_a_step_is_the_same_in_parts(
    model: bert.Model, tokenizers: dict[str, Tokenizer], settings: dict[str, Any], pending: bool
) -> None:
    """Loss and gradients of any micro-batch; as the loop collects those of the embedding too."""
    of = task(**settings)
    examples = [Example(e.text, e.pair, e.negatives, i / 3) for i, e in enumerate(EXAMPLES)]
    whole = batch(of, tokenizers["bert"], examples)
    tables = [m for m in model.modules() if isinstance(m, Embedding)]
    losses, gradients = [], []
    for rows in (5, 2, 1):
        model.zero_grad()
        for table in tables:
            table.pending = [] if pending else None
        (part,) = whole.split(rows)
        loss, count = of.loss(model.train(), part)
        loss.backward()
        for table in tables:
            table.settle()
        assert count == 5
        losses.append(loss.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        torch.testing.assert_close(loss, losses[0])
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-5)
    assert any(bool(g.any()) for g in gradients[0])


def test_dropout_is_the_same_in_both_passes(
    model: bert.Model, tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Vectors that are computed again have the gradients of vectors that were kept."""
    of = task()
    dropping = bert.Model(model.config.model_copy(update={"dropout": 0.3})).train()
    (part,) = batch(of, tokenizers["bert"], EXAMPLES).split(2)

    def gradients() -> list[torch.Tensor]:
        dropping.zero_grad()
        torch.manual_seed(1)
        of.loss(dropping, part)[0].backward()
        return [p.grad.clone() for p in dropping.parameters() if p.grad is not None]

    again = gradients()
    monkeypatch.setattr(similarity, "checkpoint", lambda function, *x, **_: function(*x))
    torch.testing.assert_close(again, gradients(), rtol=1e-4, atol=1e-5)


def test_learns_one_batch(model: bert.Model, tokenizers: dict[str, Tokenizer]) -> None:
    of = task()
    whole = batch(of, tokenizers["bert"], EXAMPLES)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = of.loss(model, whole)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_places_are_those_of_a_slow_loop() -> None:
    random = np.random.default_rng(0)
    texts = [f"q{i % 9}" for i in range(30)]
    pairs = [f"p{(i * 7) % 11}" for i in range(30)]
    made = {x: random.integers(-2, 3, 4).astype(np.float32) for x in {*texts, *pairs}}  # ties
    given = list(zip(texts, pairs, strict=True))
    found = [(made[a], made[b]) for a, b in given]
    right = {a: {p for q, p in given if q == a} for a in texts}
    wanted = []
    for text in texts:
        cosine = {p: float(made[text] @ made[p]) for p in pairs}
        best = max(cosine[p] for p in right[text])
        wanted.append(1 + sum(s >= best for p, s in cosine.items() if p not in right[text]))
    assert task().among(found, given) == wanted
    values = scores.values(task(), found, given)
    assert values["recall_at_1"] == np.mean(np.array(wanted) == 1)
    assert values["mrr_at_10"] == pytest.approx(np.mean([1 / p if p <= 10 else 0 for p in wanted]))


def test_a_model_that_sees_no_difference_finds_nothing() -> None:
    same = np.ones(3, np.float32)
    given = [(f"q{i}", f"p{i}") for i in range(20)]
    assert set(scores.values(task(), [(same, same)] * 20, given).values()) == {0.0}


def test_spearman_equals_scipys() -> None:
    random = np.random.default_rng(1)
    found, given = random.normal(size=50).round(1), random.integers(0, 6, 50).astype(float)
    scored = task(score_field="s")
    (score,) = scores.score(scored, found.tolist(), given.tolist(), resamples=50)
    wanted = stats.spearmanr(found, given).statistic
    assert score.name == "spearman" and score.value == pytest.approx(wanted)
    assert score.low < score.value < score.high
    drawn = np.random.default_rng((0, 0)).integers(0, 50, 50)  # as a resample is drawn
    value = scores.METRICS["spearman"][1](scored, found.tolist(), given.tolist())
    assert value is not None
    again = value(np.bincount(drawn, minlength=50).astype(float))
    assert again == pytest.approx(stats.spearmanr(found[drawn], given[drawn]).statistic)


def test_words_alone_are_the_baseline() -> None:
    examples = [Example("green river", "the river is green"), Example("x", "lakes are black")]
    assert task().simplest(examples) == ("BM25", [1, 2])  # nothing shared: a tie, against it


def test_records() -> None:
    of = task(text_field="q", negative_field="no", pair_field="p")
    read = of.read(record(q="a", p="b", no=["c", " ", "d"]))
    assert read == Example("a", "b", ("c", "d"))
    assert of.read(record(q="a", p="b", no="c")).negatives == ("c",)
    assert of.read(record(q="a"), labelled=False) == Example("a")
    with pytest.raises(DataError, match=r"line 3.*needs 'q' and 'p'"):
        of.read(record(q="a", other="b"))
    with pytest.raises(DataError, match="not texts"):
        of.read(record(q="a", p="b", no=[1]))
    scored = task(score_field="s")
    assert scored.read(record(text="a", pair="b", s="3.5")).score == 3.5
    for bad in ("x", None, float("nan"), True, [1], 10**400):
        with pytest.raises(DataError, match="holds no number"):
            scored.read(record(text="a", pair="b", s=bad))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "cosine"}, "does not fit pairs without"),
        ({"loss": "infonce", "score_field": "s"}, "does not fit scored pairs"),
        ({"symmetric": True, "score_field": "s"}, "are for pairs without scores"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_do_not_fit(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe().with_values({"task": {"name": "similarity", **fields}})


def test_a_score_survives_the_table(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    from inkstone.corpora.examples import ExampleTable

    of = task(score_field="s")
    examples = [Example("a", "b", (), s) for s in (-1.5, 0.1, 1e-30, 5.0)]
    codec = Codec(tokenizers["bert"], 32)
    table = ExampleTable.write(tmp_path, (r for rows in of.encode(examples, codec) for r in rows))
    found = of.collate([table[i] for i in range(4)], codec.pad_id).scores
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([-1.5, 0.1, 1e-30, 5.0]), rtol=0, atol=0)
