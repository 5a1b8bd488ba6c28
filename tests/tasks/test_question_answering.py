"""Question answering: where answers stand, windows, the best span, and the official scores."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import inkstone as ink
from inkstone import pipeline
from inkstone.cli.main import main
from inkstone.errors import DataError, UsageError
from inkstone.models import bert
from inkstone.recipe import Recipe
from inkstone.tasks import question_answering as qa
from inkstone.tasks._answers import is_exact, overlap
from inkstone.tasks._codec import Codec
from inkstone.text.table import Record
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

TEXT = "Oxygen is a chemical element with symbol O and atomic number 8. 氧的原子序数是八。"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    config = TokenizerConfig(kind="wordpiece", vocab_size=200, lowercase=True)
    return train([TEXT] * 20, config)


def record(**fields: Any) -> Record:
    return Record(fields, tuple(fields), "rows.jsonl", 3)


def task(**settings: Any) -> qa.Task:
    return qa.Task(qa.Config(**settings))


@pytest.mark.parametrize(
    "answers",
    [
        "symbol O",
        ["symbol O"],
        [{"text": "symbol O", "start": 34}],
        {"text": ["symbol O"], "answer_start": [34]},
        {"text": "symbol O", "start": 34},
        [{"text": "symbol O", "answer_start": 40}],  # a few characters off: the nearest counts
    ],
)
def test_answers_are_read_in_every_form(answers: Any) -> None:
    example = task().read(record(question="What?", context=TEXT, answers=answers))
    assert example.answers == ("symbol O",) and example.starts == (34,)


def test_places_survive_normalisation() -> None:
    context = "e\u0301te\u0301 et hiver, e\u0301te\u0301 et automne"  # two characters for one é
    start = context.rindex("e\u0301te\u0301")
    example = task().read(
        record(question="?", context=context, answers=[{"text": "e\u0301te\u0301", "start": start}])
    )
    assert example.answers == ("été",) and example.starts == (example.context.rindex("été"),)


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ([], "has no answer"), ("  ", "has no answer"), (None, "null that is no list of answers"),
        (["nitrogen"], "'nitrogen' does not stand in the text"), (7, "a number that is no list"),
        ([{"start": 3}], "no list of answers"), ({"text": ["a"], "start": [1, 2]}, "no list"),
    ],
)  # fmt: skip
def test_what_is_no_answer_is_refused(answers: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        task().read(record(question="What?", context=TEXT, answers=answers))


def test_a_missing_field_is_named() -> None:
    with pytest.raises(DataError, match="needs 'question' and 'context' and 'answers'") as caught:
        task().read(record(question="What?", context=TEXT, spans=["O"]))
    assert caught.value.fix == "name the right one: task.answers_field=spans"


@given(st.text("ab O8.，氧原 ", min_size=1, max_size=60), st.data())
@settings(max_examples=60, deadline=None)
def test_every_window_shows_what_the_text_says(
    tokenizer: Tokenizer, context: str, data: st.DataObject
) -> None:
    codec = Codec(tokenizer, data.draw(st.integers(8, 40)))
    found = task(stride=data.draw(st.integers(0, 20)), max_question_tokens=3)
    words = [(m.start(), m.end()) for m in re.finditer(r"[氧原]|[^\W氧原]+|[^\w\s]", context)]
    answer: tuple[str, ...] = ()
    if words:
        begin, end = sorted(data.draw(st.tuples(*[st.integers(0, len(words) - 1)] * 2)))
        span = words[begin][0], words[end][1]
        answer = (context[slice(*span)],)
    example = qa.Example("O b", context, answer, (span[0],) if answer else ())
    rows = found.encode([example], codec)[0]
    covered: set[int] = set()
    hits = 0
    for row in rows:
        offset = row["offset"][0]
        assert len(row["ids"]) <= codec.max_length and row["ids"][0] == codec.start_id
        places = list(zip(row["starts"], row["ends"], strict=True))
        assert len(places) == len(row["ids"]) - offset - 1
        covered |= {place for place, _ in places}
        first, last = row["target"]
        if first:
            hits += 1
            assert (places[first - offset][0], places[last - offset][1]) == span
    assert covered == {start for start, _ in words}
    whole = len(codec.places(context)[0]) <= codec.max_length - len(codec.two([5, 6, 7], [])[0])
    assert hits == 1 if whole and answer else hits <= len(rows)


def test_any_of_several_right_answers_is_right(tokenizer: Tokenizer) -> None:
    found, codec = task(), Codec(tokenizer, 64)
    given = [{"text": "symbol O", "start": 34}, "O", {"text": "symbol O", "start": 34}]
    example = found.read(record(question="What?", context="O and symbol O", answers=given))
    both = found.encode([example, qa.Example("What?", TEXT, ("8",), (62,))], codec)
    rows = [row for rows in both for row in rows]
    assert [len(row["target"]) for row in rows] == [4, 2]  # what two people say counts once
    batch = found.collate(rows, codec.pad_id)
    scores = torch.randn(*batch.input_ids.shape, 2, generator=torch.Generator().manual_seed(0))
    assert batch.candidates is not None
    p = scores.masked_fill(~batch.candidates[..., None], -torch.inf).softmax(1)
    expected = 0.0
    for number, row in enumerate(rows):
        spans = zip(row["target"][::2], row["target"][1::2], strict=True)
        expected -= float(np.log(sum(float(p[number, i, 0] * p[number, j, 1]) for i, j in spans)))
    loss, count = found.loss(lambda **inputs: scores, batch)
    assert count == 4 and float(loss) == pytest.approx(expected, rel=1e-5)


def test_texts_stand_among_their_neighbors_too(tokenizer: Tokenizer) -> None:
    codec = Codec(tokenizer, 40)
    texts = ["symbol 8", "number 8", "chemical element", "is a symbol", "number and atomic", "O"]
    words = [text.split()[-1] for text in texts]
    examples = [
        qa.Example("What?", text, (word,), (text.rindex(word),))
        for text, word in zip(texts, words, strict=True)
    ]
    plain = [row for rows in task().encode(examples, codec) for row in rows]
    assert list(task().arrange(plain, codec)) == plain
    found = list(task(distractors=3).arrange(plain, codec))
    assert [row for row in found if row in plain] == plain and len(found) > len(plain)
    read = tokenizer.decode
    for before, row in itertools.pairwise(found):
        if row in plain:
            continue
        own = read(before["ids"][before["offset"][0] : -1])
        there = read(row["ids"][row["offset"][0] : -1])
        others = there.replace(own, "", 1)
        assert own in there and others and len(row["ids"]) <= codec.max_length
        assert len(row["ids"]) == len(row["types"]) == row["offset"][0] + len(row["starts"]) + 1
        answer, (first, last) = read(before["ids"][before["target"][0] : -1]), row["target"]
        assert read(row["ids"][first : last + 1]) == answer and answer not in others.split()
    assert found == list(task(distractors=3).arrange(iter(plain), codec))


def test_types_tell_what_stands_in_the_question(tokenizer: Tokenizer) -> None:
    codec = Codec(tokenizer, 120)
    found = qa.matches([1, 2, 3, 9, 5], [7, 5, 0, 1, 2, 3, 9, 8, 2, 3, 1, 9])
    assert found == [1, 2, 1, 4, 4, 4, 4, 1, 3, 3, 2, 2]
    text = "chemical symbol 8 is a number"
    example = qa.Example("Which symbol ?", text, ("8",), (text.index("8"),))
    (plain,) = task().encode([example], codec)[0]
    (row,) = task(matches=True).encode([example], codec)[0]
    start = row["offset"][0]
    assert row | {"types": plain["types"]} == plain and set(plain["types"][start:]) == {1}
    read = {tokenizer.decode([i]): kind for i, kind in zip(row["ids"], row["types"], strict=True)}
    assert read["symbol"] > 1 == read["number"] and row["types"][-1] == 1
    others = [qa.Example("Which number ?", word, (word,), (0,)) for word in ("O", "chemical")]
    examples = [others[0], example, others[1]]
    rows = [r for rows in task(matches=True).encode(examples, codec) for r in rows]
    longer = [r for r in task(matches=True, distractors=3).arrange(rows, codec) if r not in rows]
    assert longer
    for row in longer:
        start = row["offset"][0]
        question, joined = row["ids"][1 : start - 1], row["ids"][start:-1]
        assert row["types"] == [0] * start + qa.matches(question, joined) + [1]


def brute(task: qa.Task, scores: np.ndarray, row: dict[str, Any]) -> tuple[float, int, int]:
    """The best span of a row, by looking at all."""
    offset, n = row["offset"][0], len(row["starts"])
    spans = [
        (scores[i, 0] + scores[j, 1], row["starts"][i - offset], row["ends"][j - offset])
        for i in range(offset, offset + n)
        for j in range(i, min(offset + n, i + task.config.max_answer_tokens))
    ]
    return max(spans)


def test_the_best_span_is_found_in_the_best_window(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    config = bert.Config(
        vocab_size=tokenizer.vocab_size, d_model=32, n_layers=1, n_heads=2, head="span"
    )
    model = bert.Model(config).eval()
    for p in model.parameters():
        p.data.mul_(8.0)  # scores that differ
    found = task(max_answer_tokens=5, stride=6)
    codec = Codec(tokenizer, 16)
    example = qa.Example("symbol O number", TEXT)
    rows = found.encode([example], codec)[0]
    assert len(rows) > 2
    batch = found.collate(rows, codec.pad_id)
    with torch.no_grad():
        outputs = found.outputs(model, batch, rows)
        answer = found.predict(example, outputs)
        singles = []
        total = -np.inf
        for row in rows:  # each alone, by transformers' own order of input
            ids = torch.tensor([row["ids"]])
            scores = model(ids, token_types=torch.tensor([row["types"]]))[0].double().numpy()
            singles.append(brute(found, scores, row))
            some = [0, *range(row["offset"][0], len(row["ids"]) - 1)]
            total = np.logaddexp(total, np.logaddexp.reduce(scores[some, 0])
                                 + np.logaddexp.reduce(scores[some, 1]))  # fmt: skip
    best = max(singles)
    assert (answer.start, answer.end) == best[1:]
    assert answer.text == TEXT[answer.start : answer.end]
    assert answer.score == pytest.approx(np.exp(best[0] - total), rel=1e-4)


def test_no_answer_is_given_where_nowhere_is_likelier() -> None:
    outputs = [qa.Best(3.0, 0, 6, 5.0, 5.2), qa.Best(4.0, 10, 20, 3.5, 5.0)]
    example = qa.Example("?", TEXT)
    assert task().predict(example, outputs).text == TEXT[10:20]
    assert task(unanswerable=True).predict(example, outputs).text == TEXT[10:20]
    careful = task(unanswerable=True, threshold=0.6).predict(example, outputs)
    assert careful.text == "" and careful.margin == pytest.approx(0.5)
    assert task().predict(qa.Example("?", " "), [qa.Best(-np.inf, 0, 0, 1.0, 1.0)]).text == ""


@pytest.mark.parametrize(
    ("found", "answers", "exact", "f1"),
    [  # counted by hand after the rules of section 6.1
        ("The cat's  mat.", ["a cats MAT"], True, 1.0),
        ("cat sat", ["the cat", "on a mat"], False, 2 / 3),  # one common word of two and one
        ("mat mat cat", ["mat mat mat dog"], False, 4 / 7),  # bags: two common words
        ("", ["cat"], False, 0.0), ("", [], True, 1.0), ("cat", [], False, 0.0),
        ("the", ["a"], True, 1.0),  # nothing is left of either
        ("“mat”", ["mat"], False, 0.0),  # only ASCII marks are dropped from Latin words
        ("《红楼梦》", ["红楼梦。"], True, 1.0), ("八十回", ["前八十回"], False, 6 / 7),
        ("iPhone手机", ["iphone 手机"], True, 1.0),
    ],
)  # fmt: skip
def test_answers_are_scored_as_the_official_script_scores(
    found: str, answers: list[str], exact: bool, f1: float
) -> None:
    assert is_exact(found, answers) is exact
    assert overlap(found, answers) == pytest.approx(f1)


def test_a_run_learns_to_find_and_opens_in_transformers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers = pytest.importorskip("transformers", reason="the oracle is not installed")
    random.seed(0)
    kinds = {"color": ["red", "blue", "gray"], "animal": ["cat", "dog", "hen"],
             "number": ["one", "two", "six"]}  # fmt: skip
    rows = []
    for _ in range(400):
        there = random.sample(sorted(kinds), 2)
        words = [random.choice(kinds[kind]) for kind in there]
        context = "which "  # a word that every question has: documents are found by it
        context += " ".join(f"{random.choice(['so', 'and', 'but'])} {word} ." for word in words)
        answers = [{"text": w, "start": context.index(w)} for w in words if w in kinds["color"]]
        rows.append({"question": "which color ?", "context": context, "answers": answers})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = Recipe().with_values(
        {
            "data": {"path": (str(tmp_path / "rows.jsonl"),)},
            "task": {"name": "question_answering", "unanswerable": True},
            "tokenizer": {"vocab_size": 300},
            "model": {"d_model": 32, "n_layers": 2, "n_heads": 2, "dropout": 0.0},
            "training": {"precision": "fp32", "max_steps": 120, "examples_per_step": 32,
                         "early_stop_patience": 100,
                         "lr": 3e-3},
        }
    )  # fmt: skip
    result = pipeline.train(recipe, tmp_path / "run", cache=tmp_path / "cache")
    scores = {row["name"]: row["value"] for row in result["scores"]}
    assert scores["answer_f1"] > 0.9 > 0.5 > result["baseline"]["answer_f1"]
    assert scores["answerable_accuracy"] > 0.95
    model = ink.load(tmp_path / "run")
    contexts = ["which so hen . and blue .", "which but six . so cat ."]
    answers = model.answer(["which color ?", "which color ?"], contexts)
    assert [answer.text for answer in answers] == ["blue", ""]
    assert model.answer("which color ?", contexts[0] * 100).text == "blue"  # in windows
    with pytest.raises(UsageError, match="a question needs a text"):
        model.predict(["what?"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    documents = tmp_path / "notes"
    documents.mkdir()
    (documents / "one.txt").write_text("which so two . so blue .")
    (documents / "two.txt").write_text("which so hen . and red .")
    (cited,) = model.answer_from("which color ?", documents)
    assert (cited.answer.text, cited.passage.source) in {("blue", "one.txt"), ("red", "two.txt")}
    command = ["answer", str(tmp_path / "run"), "which color ?", "--documents", str(documents)]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == cited.answer.text and f"«{first}»" in second
    assert second.strip().startswith(f"{cited.passage.place}: …")
    assert main([*command, "--json", "--top", "5"]) == 0
    rows = json.loads(capsys.readouterr().out)["answers"]
    assert {row["answer"] for row in rows} == {"blue", "red"}
    assert all(row["text"][row["start"] : row["end"]] == row["answer"] for row in rows)
    assert main(["answer", str(tmp_path / "run"), "which color ?", "--documents", "absent"]) == 1
    folder = tmp_path / "run" / "model"
    theirs = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    ids = torch.tensor([[2, 7, 8, 9, 3, 10, 11, 12, 3]])
    types = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        mine = model.model(ids, token_types=types)[0]
        wanted = theirs(ids, token_type_ids=types)
    both = torch.stack((wanted.start_logits[0], wanted.end_logits[0]), -1)
    torch.testing.assert_close(mine, both, rtol=0, atol=1e-4)
