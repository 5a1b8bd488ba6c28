"""What words say for a label: exact where the model is linear, and what it means everywhere."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone import api, pipeline
from inkstone.errors import UsageError
from inkstone.inference.predict import Predictor
from inkstone.inspection.attribution import attribute
from inkstone.models import bag_of_words
from inkstone.recipe import Recipe
from inkstone.tasks import classification, translation

GOOD, BAD = ["lovely", "fine", "bright"], ["dull", "poor", "grey"]
FILL = ["the", "film", "was", "and", "very"]


def _texts(n: int) -> tuple[list[str], list[str]]:
    random.seed(0)
    labels = [random.choice(["good", "bad"]) for _ in range(n)]
    texts = [
        " ".join(random.sample(FILL, 4) + random.sample(GOOD if label == "good" else BAD, 2))
        for label in labels
    ]
    return texts, labels


@pytest.fixture(scope="module", params=["bag_of_words", "bert", "bilstm"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    import json

    folder = tmp_path_factory.mktemp(request.param)
    rows = [{"text": t, "label": y} for t, y in zip(*_texts(200), strict=True)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shapes: dict[str, dict[str, Any]] = {
        "bert": {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64},
        "bilstm": {"d_model": 16, "hidden_size": 16},
    }
    given: dict[str, Any] = {
        "task": {"name": "classification"},
        "model": {"family": request.param, **shapes.get(request.param, {})},
    }
    if request.param in shapes:
        given |= {"tokenizer": {"vocab_size": 300},
                  "training": {"max_steps": 60, "micro_batch_size": 16, "lr": 0.003}}  # fmt: skip
    recipe = Recipe.model_validate(given).with_data([str(folder / "train.jsonl")], None)
    pipeline.train(recipe, folder / "run", cache=folder / "cache")
    return api.load(folder / "run", device="cpu")


def test_it_is_what_is_lost_without_the_word(model: Any) -> None:
    text = "the film was lovely, and very dull"
    found = attribute(model.predictor, text, "good")
    assert [w.text for w in found.words] == [
        "the",
        "film",
        "was",
        "lovely",
        ",",
        "and",
        "very",
        "dull",
    ]
    assert found.text == text and all(text[w.start : w.end] == w.text for w in found.words)

    def odds(of: str) -> float:
        p = model.classify(of).scores
        return math.log(p["good"] / p["bad"])

    whole = odds(text)
    left_out = {3: "the film was, and very dull", 0: "film was lovely, and very dull",
                7: "the film was lovely, and very"}  # fmt: skip
    for place, without in left_out.items():
        assert found.words[place].weight == pytest.approx(whole - odds(without), abs=2e-3)
    assert found.score == pytest.approx(model.classify(text).scores["good"], abs=1e-5)


def test_it_points_at_the_right_words(model: Any) -> None:
    found = attribute(model.predictor, "the film was lovely and fine")
    assert found.label == "good"
    weights = {word.text: word.weight for word in found.words}
    good = weights["lovely"], weights["fine"]
    assert sum(good) > 0
    if model.family == "bag_of_words":  # the others have learned for a few steps only
        assert min(good) > 0 and sum(good) > sum(abs(w) for w in weights.values()) / 2, weights
    against = attribute(model.predictor, "the film was lovely and fine", "bad")
    for one, other in zip(found.words, against.words, strict=True):
        assert one.weight == pytest.approx(-other.weight, abs=2e-3)


def test_bad_questions(model: Any) -> None:
    with pytest.raises(UsageError, match="no label 'x'") as error:
        attribute(model.predictor, "the film", "x")
    assert "bad, good" in str(error.value.fix)
    assert attribute(model.predictor, "").words == ()
    assert len(attribute(model.predictor, "!").words) == 1


def test_a_linear_model_is_explained_exactly() -> None:
    """Of two labels: the sum of weight × count over the features that the word is part of."""
    texts, labels = _texts(300)
    config = bag_of_words.Config(word_ngrams=1, weighting="counts", min_df=1)
    fitted = bag_of_words.Model(config).fit(texts, labels)
    task = classification.Task(classification.Config(), ["bad", "good"])
    predictor: Any = Predictor(task, fitted, "linear")
    text = "the film was lovely and lovely and dull"
    found = attribute(predictor, text, "good")
    own = fitted.explain(text, limit=100)
    sign = 1.0 if own.label == "good" else -1.0
    counted = {c.text.strip(): sign * c.value / text.split().count(c.text.strip())
               for c in own.contributions}  # fmt: skip
    assert set(counted) == set(text.split())
    for one in found.words:
        assert one.weight == pytest.approx(counted[one.text], abs=1e-9)
    total = sum(one.weight for one in found.words) + sign * own.bias
    assert total == pytest.approx(math.log(found.score / (1 - found.score)), abs=1e-9)


def test_neighbors_of_a_long_text_share_a_reading() -> None:
    asked: list[int] = []

    class Fake:
        task = classification.Task(classification.Config(), ["a", "b"])

        def __call__(self, examples: Any) -> Any:
            asked.append(len(examples))
            for example in examples:
                yield example, self.task.classification(np.array([0.5, 0.5]))

    fake: Any = Fake()
    found = attribute(fake, "one two " * 500, most=10)
    assert asked == [11] and len(found.words) == 10
    assert found.words[0].text.split() == ["one", "two"] * 50
    other: Any = type("Other", (), {"task": translation.Task(translation.Config(), [])})()
    with pytest.raises(UsageError, match="classifier"):
        attribute(other, "x")


def test_chinese_is_explained_by_character(tmp_path: Path) -> None:
    texts = ["好看", "难看", "好听", "难听"] * 5
    config = bag_of_words.Config(word_ngrams=0, char_ngrams=1, weighting="counts", min_df=1)
    fitted = bag_of_words.Model(config).fit(texts, ["+" if "好" in t else "-" for t in texts])
    predictor: Any = Predictor(
        classification.Task(classification.Config(), ["+", "-"]), fitted, "linear"
    )
    found = attribute(predictor, "好听。", "+")
    assert [w.text for w in found.words] == ["好", "听", "。"]
    assert found.words[0].weight > abs(found.words[1].weight)


def test_a_model_that_is_quite_sure_is_explained_too() -> None:
    """Of a probability that fp32 rounds to 1, what is left for the others is told."""

    class Sure:
        task = classification.Task(classification.Config(), ["a", "b"])

        def __call__(self, examples: Any) -> Any:
            for example in examples:
                left = 1e-12 if "yes" in example.text else 1e-9
                yield example, self.task.classification(np.array([1.0, left]))

    sure: Any = Sure()
    found = attribute(sure, "oh yes")
    assert [w.weight for w in found.words] == pytest.approx([0, math.log(1000)])
