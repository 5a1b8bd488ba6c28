"""Classification: the threshold from which a label is given."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import inkstone as ink
from inkstone import pipeline
from inkstone.errors import DataError, InkstoneError
from inkstone.evaluation import scores
from inkstone.recipe import Recipe
from inkstone.tasks import classification as c


def f1(task: c.Task, examples: list[c.Example], rows: list[list[float]]) -> float:
    found = [task.found(task.classification(row)) for row in rows]
    wanted = [task.given(example) for example in examples]
    name = "micro_f1" if task.config.multi_label else "f1"
    return scores.values(task, found, wanted)[name]


@given(st.data(), st.booleans())
def test_no_threshold_has_a_higher_f1(data: st.DataObject, several: bool) -> None:
    names = ("a", "b", "c") if several else ("ham", "spam")
    config = {"threshold": "auto", "multi_label": several}
    task = c.Task(c.Config(**config), names)
    p = st.sampled_from([0.02, 0.1, 0.25, 0.3, 0.5, 0.7, 0.99])
    examples, rows = [], []
    for _ in range(data.draw(st.integers(1, 12))):
        if several:
            labels = tuple(sorted(data.draw(st.sets(st.sampled_from(names)))))
            rows.append([data.draw(p) for _ in names])
        else:
            labels = (data.draw(st.sampled_from(names)),)
            rows.append([1 - (spam := data.draw(p)), spam])
        examples.append(c.Example("x", labels))
    assert task.unsettled
    line = task.settle(examples, [task.classification(row) for row in rows])
    rare = names if several else ("spam",)
    if not any(name in example.labels for example in examples for name in rare):
        assert line is None and task.unsettled  # nothing to choose by: a half
        return
    assert not task.unsettled and task.info()["task_settings"]["threshold"] < 1
    best = f1(task, examples, rows)
    for other in np.linspace(0.01, 0.995, 60):
        tried = c.Task(c.Config(threshold=float(other), multi_label=several), names)
        assert f1(tried, examples, rows) <= best + 1e-12


@pytest.mark.parametrize("family", ["bag_of_words", "bert"])
def test_a_run_chooses_its_threshold_and_remembers_it(family: str, tmp_path: Path) -> None:
    random.seed(0)
    rows = []
    for _ in range(200):  # a message with "win" is spam every second time, others are never
        word = "win" if random.random() < 0.3 else "tea"
        spam = word == "win" and random.random() < 0.5
        rows.append({"text": f"{word} {random.random():.3f}", "label": "spam" if spam else "ham"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = {"d_model": 32, "n_layers": 1, "n_heads": 2} if family == "bert" else {}
    recipe = Recipe().with_values(
        {
            "data": {"path": (str(tmp_path / "rows.jsonl"),)},
            "text": {"valid_fraction": 0.3},
            "task": {"name": "classification", "threshold": "auto"},
            "tokenizer": {"vocab_size": 300},
            "model": {"family": family, **model},
            "training": {"max_steps": 30} if family == "bert" else {},
        }
    )
    pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    about = json.loads((tmp_path / "run" / "model" / "inkstone.json").read_text())
    threshold = about["task_settings"]["threshold"]
    assert 0 < threshold < 1 and threshold != 0.5
    found = ink.load(tmp_path / "run").classify("win 0.5")
    assert (found.label == "spam") == (found.scores["spam"] >= threshold)
    assert found.score == found.scores[found.label]


@pytest.mark.parametrize("value", [0, 1, 1.5, "automatic"])
def test_what_is_no_threshold_is_refused(value: object, tmp_path: Path) -> None:
    with pytest.raises((InkstoneError, ValueError)):
        c.Config(threshold=value)  # type: ignore[arg-type]


def test_a_positive_label_that_is_none_is_named() -> None:
    examples = [c.Example("x", (label,)) for label in ("0", "1", "0")]
    assert c.Task(c.Config(positive=1)).learn(examples).positive == "1"  # type: ignore[arg-type, attr-defined]
    with pytest.raises(DataError, match=r"task\.positive is 'spam', but the labels are '0', '1'"):
        c.Task(c.Config(positive="spam")).learn(examples)


@pytest.mark.parametrize("several", [False, True])
def test_two_passes_are_held_together(several: bool) -> None:
    """R-Drop: half of equation 4, against the formula written out; nothing while a model reads."""
    names = ("a", "b", "c")
    task = c.Task(c.Config(agreement=3.0, multi_label=several), names)
    batch = task.collate([{"ids": [1], "labels": [0]}, {"ids": [2], "labels": [2]}], 0)
    passes = [torch.randn(2, 3, generator=torch.Generator().manual_seed(i)) for i in range(2)]

    class Model(torch.nn.Module):
        def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
            return left.pop(0)

    def divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if several:
            kinds = [torch.distributions.Bernoulli(logits=x) for x in (a, b)]
            return torch.distributions.kl_divergence(*kinds).mean(1).sum()
        kinds = [torch.distributions.Categorical(logits=x) for x in (a, b)]
        return torch.distributions.kl_divergence(*kinds).sum()

    plain = c.Task(c.Config(multi_label=several), names)
    model, alone = Model(), []
    for one in passes:
        left = [one]
        alone.append(float(plain.loss(model, batch)[0]))
    left = list(passes)
    a, b = passes
    expected = sum(alone) / 2 + 3.0 / 2 * (divergence(a, b) + divergence(b, a)) / 2
    total, count = task.loss(model, batch)
    assert count == 2 and float(total) == pytest.approx(float(expected), rel=1e-5)
    left = [a]
    assert float(task.loss(model.eval(), batch)[0]) == pytest.approx(alone[0]) and not left
