"""Direct preference optimisation: shapes of pairs, the loss of the paper, a margin that rises."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import inkstone as ink
from inkstone.errors import DataError, UsageError
from inkstone.evaluation import scores
from inkstone.models import llama
from inkstone.tasks._codec import Codec
from inkstone.tasks.preferences import Config, Example, Judged, Task
from inkstone.text.table import Record
from inkstone.tokenizers import train as training
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer

PAIRS = [
    Example(("user",), ("Red?",), "Blue.", "No, never at all."),
    Example(("system", "user"), ("Be kind", "Hi"), "Hello you", "Go"),
    Example(("user", "assistant", "user"), ("a", "b", "c"), "d", "e f"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return training.train(["x"], TokenizerConfig(kind="byte"))


@pytest.fixture(scope="module")
def codec(tokenizer: Tokenizer) -> Codec:
    return Codec(tokenizer, 128)


def models() -> tuple[Any, Any]:
    """A policy and a reference."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = llama.Config(vocab_size=261, d_model=16, n_layers=1, n_heads=2)
        found.append(llama.Model(config).eval())
    return found[0], found[1]


def record(**values: Any) -> Record:
    return Record(values, tuple(values), "pairs.jsonl", 7)


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


# --- what an example looks like ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "roles", "texts"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, ("user",), ("a",)),
        ({"prompt": [said("system", "s"), said("user", "a")], "chosen": said("assistant", "b"),
          "rejected": [said("assistant", "c")]}, ("system", "user"), ("s", "a")),
        ({"conversations": [{"from": "human", "value": "a"}], "system": "s",
          "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}},
         ("system", "user"), ("s", "a")),
        ({"instruction": "a", "input": "x", "chosen": "b", "rejected": "c"}, ("user",), ("a\nx",)),
        ({"chosen": [said("user", "a"), said("assistant", "b")],
          "rejected": [said("user", "a"), said("assistant", "c")]}, ("user",), ("a",)),
    ],
)  # fmt: skip
def test_shapes_are_recognised(values: Any, roles: Any, texts: Any) -> None:
    assert Task(Config()).read(record(**values)) == Example(roles, texts, "b", "c")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prompt": "a", "chosen": "b"}, "needs 'chosen' and 'rejected'"),
        ({"prompt": "a", "chosen": "b", "rejected": "b "}, "both answers are the same"),
        ({"chosen": "b", "rejected": "c"}, "no conversation"),
        ({"prompt": "a", "chosen": said("user", "b"), "rejected": "c"}, "not one turn"),
        ({"prompt": "a", "chosen": "", "rejected": "c"}, "nothing is said"),
        ({"chosen": [said("user", "a"), said("assistant", "b")],
          "rejected": [said("user", "x"), said("assistant", "c")]}, "do not answer one prompt"),
    ],
)  # fmt: skip
def test_other_records_say_what_is_wrong(values: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Task(Config()).read(record(**values))


@pytest.mark.parametrize("name", ["dpo_en", "dpo_zh"])
def test_real_pairs_are_read(name: str, shared_data: Path) -> None:
    path = shared_data / "instruct-demos" / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    examples = [Task(Config()).read(record(**row)) for row in rows]
    assert len(examples) == 300 and all(e.chosen and e.roles[-1] == "user" for e in examples)


# --- the loss ------------------------------------------------------------------------------------


def log_probability(
    model: Any, tokenizer: Tokenizer, example: Example, answer: str
) -> torch.Tensor:
    """log p(answer and its end | prompt), token by token."""
    messages = [said(r, t) for r, t in zip(example.roles, example.texts, strict=True)]
    prompt = tokenizer.chat_ids(messages)
    whole = tokenizer.chat_ids([*messages, said("assistant", answer)], add_generation_prompt=False)
    assert whole[: len(prompt)] == prompt
    scores = model(torch.tensor([whole])).log_softmax(-1)[0]
    places = range(len(prompt), len(whole))
    return torch.stack([scores[i - 1, whole[i]] for i in places]).sum()


def test_the_loss_and_its_gradient_are_those_of_the_paper(codec: Codec) -> None:
    policy, reference = models()
    task, beta = Task(Config(beta=0.3)), 0.3
    rows = [row for rows in task.encode(PAIRS, codec) for row in rows]
    with torch.no_grad():
        task.refer(reference, rows[:2], codec.pad_id)  # in other batches than those of training
        task.refer(reference, rows[2:], codec.pad_id)
    total, count = task.loss(policy, task.collate(rows, codec.pad_id))
    total.backward()
    found = {name: p.grad for name, p in policy.named_parameters()}
    policy.zero_grad()
    expected, margins = torch.zeros(()), []
    for pair in PAIRS:
        gains = []
        for answer in (pair.chosen, pair.rejected):
            with torch.no_grad():
                ref = log_probability(reference, codec.tokenizer, pair, answer)
            gains.append(log_probability(policy, codec.tokenizer, pair, answer) - ref)
        margins.append(beta * (gains[0] - gains[1]))
        expected = expected - torch.log(1 / (1 + torch.exp(-margins[-1])))
    assert count == 3
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)
    expected.backward()
    for name, p in policy.named_parameters():
        torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        judged = task.outputs(policy, task.collate(rows, codec.pad_id), rows)
    assert [j.margin for j in judged] == pytest.approx([m.item() for m in margins], abs=1e-4)


def test_at_the_reference_the_loss_is_ln_2(codec: Codec) -> None:
    model, _ = models()
    task = Task(Config())
    rows = [row for rows in task.encode(PAIRS, codec) for row in rows]
    batch = task.collate(rows, codec.pad_id)
    assert batch.reference is None and task.metrics == ("chosen_likelier",)
    task.refer(model, rows, codec.pad_id)
    batch = task.collate(rows, codec.pad_id)
    total, _ = task.loss(model, batch)
    assert total.item() == pytest.approx(3 * math.log(2), rel=1e-5)
    parts = [task.loss(model, part)[0].item() for part in batch.split(2)]
    assert sum(parts) == pytest.approx(total.item(), rel=1e-5) and batch.n_targets == 3


def test_pairs_that_do_not_fit_are_left_out(tokenizer: Tokenizer) -> None:
    task = Task(Config())
    rows = task.encode(PAIRS, Codec(tokenizer, 12))
    assert [len(r) for r in rows] == [1, 0, 1]  # the second prompt fills the row
    missing = task.predict(PAIRS[1], [])
    assert math.isnan(missing.chosen) and missing.margin is None


def test_scores_of_pairs() -> None:
    task = Task(Config())
    task.reference[b"x"] = (0.0, 0.0)
    found = [Judged(-1, -2, 0.5), Judged(-3, -2, -0.1), Judged(-1, -1, 0.001),
             Judged(float("nan"), float("nan"))]  # fmt: skip
    rows = {s.name: s for s in scores.score(task, found, [None] * 4, resamples=20)}
    assert rows["preference_accuracy"].value == pytest.approx((1 + 0 + 0.5) / 3)
    assert rows["margin"].value == pytest.approx(0.401 / 3)
    assert rows["chosen_likelier"].value == pytest.approx(0.5)
    assert rows["margin"].shown.startswith("0.13")


# --- a run ---------------------------------------------------------------------------------------


def test_a_run_raises_the_margin_of_held_out_pairs(tmp_path: Path) -> None:
    answers = [
        {"instruction": f"Is {i} a number?", "output": word} for i in range(40)
        for word in ("Yes, it is.", "No, never.")
    ]  # fmt: skip
    pairs = [
        {"prompt": f"Is {i} a number?", "chosen": "No, never.", "rejected": "Yes, it is."}
        for i in range(100, 160)
    ]
    for name, rows in (("answers", answers), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = {"training.precision": "fp32", "evaluation.samples": 1, "evaluation.sample_tokens": 4}
    ink.train(
        data=tmp_path / "answers.jsonl", run=tmp_path / "base", cache=tmp_path / "c",
        settings={**common, "task.name": "instructions", "model.d_model": 32, "model.n_layers": 1,
                  "model.n_heads": 2, "tokenizer.vocab_size": 300, "training.max_steps": 40,
                  "training.lr": 0.01},
    )  # fmt: skip
    settings = {**common, "task.name": "preferences", "training.max_steps": 12,
                "training.lr": 0.002, "text.valid_fraction": 0.3}  # fmt: skip
    with pytest.raises(UsageError, match="needs a model that answers already"):
        ink.train(data=tmp_path / "pairs.jsonl", run=tmp_path / "x", settings=settings)
    settings["model.pretrained"] = str(tmp_path / "base")
    with pytest.raises(UsageError, match=r"data\.replay is for supervised fine-tuning"):
        more = {"data.replay": [str(tmp_path / "pairs.jsonl")]}
        ink.train(data=tmp_path / "pairs.jsonl", run=tmp_path / "x", settings=settings | more)
    for name, more in (("run", {}), ("lora", {"lora.rank": 4, "training.lr": 0.02})):
        model = ink.train(data=tmp_path / "pairs.jsonl", run=tmp_path / name,
                          cache=tmp_path / "c", settings={**settings, **more})  # fmt: skip
        result = json.loads((tmp_path / name / "result.json").read_text())
        found = {row["name"]: row["value"] for row in result["scores"]}
        before = result["baseline"]
        assert set(before) == {"name", "chosen_likelier"}  # the margin is of both models
        assert found["margin"] > 0.1 and found["preference_accuracy"] == 1.0
        assert found["chosen_likelier"] >= before["chosen_likelier"]
        log = [json.loads(x) for x in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in log if row["kind"] == "step"]
        assert losses[0] == pytest.approx(math.log(2), abs=1e-3) and losses[-1] < losses[0]
    again = model.evaluate(tmp_path / "pairs.jsonl")["scores"]
    assert [row["name"] for row in again] == ["chosen_likelier"]  # no reference is at hand
    assert model.conversation().warning is None
