"""In-context evaluation equals a slow loop over transformers, and draws what it says it draws."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.checkpoint import save_model
from inkstone.errors import DataError, UsageError
from inkstone.evaluation.few_shot import few_shot
from inkstone.evaluation.questions import Form, Question, read_both, sample
from inkstone.inference import Generator
from inkstone.models import gpt3
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

WORDS = [
    "river",
    "stone",
    "moon",
    "lamp",
    "paper",
    "ink",
    "brush",
    "tea",
    "garden",
    "cloud",
    "boat",
    "winter",
    "song",
    "door",
    "fish",
]


def questions(count: int, seed: int = 0, options: int = 3) -> list[Question]:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = " ".join(random.choice(WORDS, random.integers(2, 9))) + ". Next:"
        choices = [
            " ".join(random.choice(WORDS, random.integers(1, 4), replace=False)) for _ in range(9)
        ]
        choices = list(dict.fromkeys(choices))[:options]
        made.append(Question(prompt, tuple(choices), (choices[random.integers(options)],)))
    return made


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([" ".join(WORDS) + ". Next: Answer:\n\n"] * 9, TokenizerConfig(vocab_size=340))


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> Generator:
    torch.manual_seed(0)
    config = gpt3.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=2, n_heads=2, max_seq_len=160,
        band=None,
    )  # fmt: skip
    model = gpt3.Model(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return Generator(model.eval(), tokenizer)


@pytest.fixture(scope="module")
def theirs(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("gpt3")
    save_model(folder, generator.model, generator.tokenizer)
    return AutoModelForCausalLM.from_pretrained(folder).eval()


@torch.no_grad()
def nats(model: Any, context: list[int], option: list[int]) -> float:
    ids = torch.tensor([context + option])
    given = model(ids).logits[0].log_softmax(-1)
    return sum(float(given[len(context) + i - 1, t]) for i, t in enumerate(option))


def slowly(
    model: Any, tokenizer: Tokenizer, asked: list[Question], pool: list[Question], k: int, by: str
) -> list[str]:
    """A loop over single questions and options."""
    answers = []
    for number, question in enumerate(asked):
        order = np.random.default_rng((0, number)).permutation(len(pool))
        shots = [pool[i] for i in order if pool[i] != question][:k]
        context = [tokenizer.eos_id]
        for shot in shots:
            context += tokenizer.encode(f"{shot.prompt} {shot.answers[0]}\n\n")
        context += tokenizer.encode(question.prompt)
        values = []
        for option in question.options:
            ids = tokenizer.encode(f" {option}")
            value = nats(model, context, ids)
            if by == "tokens":
                value /= len(ids)
            if by == "answer":
                value -= nats(model, [tokenizer.eos_id, *tokenizer.encode("Answer:")], ids)
            values.append(value)
        answers.append(question.options[int(np.argmax(values))])
    return answers


@pytest.mark.parametrize("by", ["tokens", "sum", "answer"])
def test_equals_a_loop_over_transformers(
    generator: Generator, theirs: Any, tokenizer: Tokenizer, by: Any
) -> None:
    asked, pool = questions(14), questions(20, seed=1)
    reports = few_shot(generator, asked, pool, shots=(0, 2), by=by)
    for report in reports:
        expected = slowly(theirs, tokenizer, asked, pool, report.shots, by)
        assert list(report.answers) == expected
        right = [a == q.answers[0] for a, q in zip(expected, asked, strict=True)]
        assert report.accuracy.value == pytest.approx(np.mean(right))
        assert report.accuracy.low <= report.accuracy.value <= report.accuracy.high
        assert report.chance == pytest.approx(1 / 3) and report.shown == report.shots
    assert len({r.answers for r in reports}) == 2  # the demonstrations are read


def test_shared_demonstrations_equal_those_of_the_first_question(
    generator: Generator, theirs: Any, tokenizer: Tokenizer
) -> None:
    asked, pool = questions(10), questions(20, seed=1)
    ours = few_shot(generator, asked, pool, shots=(2,), shared=True)[0].answers
    for question, answer in zip(asked, ours, strict=True):
        assert [answer] == slowly(theirs, tokenizer, [question], pool, 2, "tokens")


def test_a_written_answer_equals_greedy_decoding(
    generator: Generator, theirs: Any, tokenizer: Tokenizer
) -> None:
    asked = [Question(q.prompt, (), ("stone",)) for q in questions(6)]
    ours = few_shot(generator, asked, asked, shots=(1,), max_tokens=8)[0]
    for number, (question, answer) in enumerate(zip(asked, ours.answers, strict=True)):
        order = np.random.default_rng((0, number)).permutation(len(asked))
        shot = next(asked[i] for i in order if asked[i] != question)
        ids = [tokenizer.eos_id, *tokenizer.encode(f"{shot.prompt} stone\n\n")]
        ids += tokenizer.encode(question.prompt)
        found = theirs.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=8, pad_token_id=0
        )[0, len(ids) :]
        assert answer == tokenizer.decode(found.tolist()).split("\n")[0].strip()
    assert ours.chance is None and ours.majority == 1.0


def test_draws_are_nested_seeded_and_never_the_question_itself(generator: Generator) -> None:
    from inkstone.evaluation.few_shot import _draw

    pool = questions(30)
    pool += [pool[3]] * 4
    for number, question in enumerate(pool):
        eight = _draw(question, pool, 8, 5, number)
        assert _draw(question, pool, 1, 5, number) == eight[:1]
        assert len(eight) == 8 and all(pool[i] != question for i in eight)
    assert _draw(pool[0], pool, 8, 5, 0) != _draw(pool[0], pool, 8, 6, 0)


def test_what_does_not_fit_is_left_out_and_said(generator: Generator) -> None:
    long = Question("stone " * 400 + "Next:", ("ink", "tea"), ("ink",))
    short = Question("Next:", ("ink", "tea"), ("tea",))
    report = few_shot(generator, [long, short], questions(40, options=2), shots=(30,))[0]
    assert report.cut == 1 and 0 < report.shown < 15 and report.examples == 2
    with pytest.raises(UsageError, match="does not fit the model's context"):
        few_shot(generator, [Question("a", ("stone " * 200, "ink"), ("ink",))], shots=(0,))


def test_impossible_wishes_are_named(generator: Generator) -> None:
    some = questions(4)
    for wanted, settings, error in [
        ([], {}, DataError), (some, {"shots": (4,)}, DataError), (some, {"shots": ()}, UsageError),
        (some, {"shots": (-1,)}, UsageError), (some, {"by": "luck"}, UsageError),
        ([*some, Question("a", (), ("b",))], {"shots": (0,)}, DataError),
    ]:  # fmt: skip
        with pytest.raises(error):
            few_shot(generator, wanted, **settings)


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_records_become_questions(tmp_path: Path) -> None:
    file = write(
        tmp_path / "a.jsonl",
        {"goal": "Cut it", "choices": ["saw", "soup"], "answer": 0},
        {"question": "Where?", "choices": {"text": ["here", "there"]}, "answerKey": "B"},
        {"question": "Who?", "context": "Ada wrote.", "answers": {"text": ["Ada", "ada"]}},
        {"prompt": "2 + 2 =", "completion": "4"},
    )
    found = Form().read(file)
    assert found[0] == Question("Question: Cut it\nAnswer:", ("saw", "soup"), ("saw",))
    assert found[1].answers == ("there",)
    assert found[2].prompt == "Ada wrote.\nQuestion: Who?\nAnswer:"
    assert found[2].answers == ("Ada", "ada") and found[3] == Question("2 + 2 =", (), ("4",))
    named = write(tmp_path / "b.jsonl", {"text": "win!", "label": 1}, {"text": "hi", "label": 0})
    assert Form(labels=("ham", "spam")).read(named)[0] == Question(
        "win!\nLabel:", ("ham", "spam"), ("spam",)
    )
    assert Form("{text}\n").read(named)[0] == Question("win!", ("0", "1"), ("1",), "\n")
    lines = tmp_path / "c.txt"
    lines.write_text("the cat sat on the mat\n\na b\n", encoding="utf-8")
    assert Form().read(lines)[0] == Question("the cat sat on the", (), ("mat",), one_word=True)


def test_records_that_are_no_questions_say_what_they_need(tmp_path: Path) -> None:
    for row, error, message in [
        ({"question": "a", "choices": ["x", "y"], "answer": 2}, DataError, "none of its 2 choices"),
        ({"question": "a", "choices": "x", "answer": 0}, DataError, "not a list of two texts"),
        ({"question": "a", "choices": ["x", "y"]}, DataError, "none of its 2 choices"),
        ({"body": "a", "label": "x"}, DataError, "body"),
        ({"text": "a"}, DataError, "no answer"),
    ]:
        with pytest.raises(error, match=message):
            Form().read(write(tmp_path / "a.jsonl", row))
    file = write(tmp_path / "a.jsonl", {"text": "a", "label": 7})
    with pytest.raises(DataError, match="no name is given to the label '7'"):
        Form(labels=("ham", "spam")).read(file)
    with pytest.raises(UsageError, match=r"\{topic\}"):
        Form("{topic}").read(file)


def test_a_folder_knows_what_is_asked_and_what_is_shown(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *({"text": f"t{i}", "label": i % 3} for i in range(6)))
    write(tmp_path / "test.jsonl", {"text": "x", "label": 0}, {"text": "y", "label": 1})
    asked, pool = read_both(Form(), tmp_path)
    assert [q.prompt for q in asked] == ["x\nLabel:", "y\nLabel:"] and len(pool) == 6
    assert asked[0].options == ("0", "1", "2")  # those of the training part
    assert sample(pool, 3) == sample(pool, 3) and len(sample(pool, 3)) == 3
    assert sample(pool, 3, seed=1) != sample(pool, 3) or sample(pool, 3, seed=2) != sample(pool, 3)
