"""inkstone new: looks, foretells, recommends, writes a recipe that trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inkstone import recipe as recipes
from inkstone.cli import new
from inkstone.pipeline import advising
from inkstone.planning import advice

NOUNS = {"cup": ("goal", "team", "match", "coach"), "law": ("court", "judge", "trial", "crime")}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Steps of networks are timed in no time, and everything is written under tmp_path."""
    monkeypatch.setattr(advising, "TIMING_S", 0.001)
    monkeypatch.setattr(
        advice, "SHORTLIST",
        {**advice.SHORTLIST, "classification": ("bag_of_words", "bert"), "tagging": ("hmm",)},
    )  # fmt: skip
    monkeypatch.setenv("INKSTONE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def labelled(path: Path, count: int, noise: float = 0.2) -> Path:
    """Two topics, told by their nouns, of which a share is of the other topic."""
    chance = np.random.default_rng(0)
    rows = []
    for i in range(count):
        label = "cup" if i % 3 else "law"
        other = "law" if label == "cup" else "cup"
        nouns = NOUNS[other] if chance.random() < noise else NOUNS[label]
        words = [*chance.choice(nouns, 2), f"n{chance.integers(50)}", f"x{i}"]
        rows.append({"id": i, "text": f"the {words[0]} and the {' '.join(words[1:])}",
                     "label": label})  # fmt: skip
    path.mkdir(parents=True)
    (path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_a_score_is_foretold_and_comes_true(tool: Any, tmp_path: Path) -> None:
    data = labelled(tmp_path / "topics", 3000)
    told = tool("new", "--data", data, "--minutes", 1, "--probe-seconds", 5, "--json")
    assert told.code == 0, told.err
    found = told.json
    assert found["task"] == "classification" and found["chosen"] == "bag_of_words"
    bag, bert = found["candidates"]
    assert bag["expected"]["low"] < bag["expected"]["value"] < 0.85  # a fifth of the nouns mislead
    assert bag["expected"]["sizes"][-1] <= 3000 and bag["memory_bytes"] > 1e7
    assert bert["expected"] is None and bert["training_s"] > 0 and "parameters" in bert["size"]
    assert "not known" in found["against"]["bert"]
    assert "cup 66" in found["facts"]["labels"]
    made = recipes.load(tmp_path / "topics.toml")
    assert made.model.family == "bag_of_words" and made.model.fields["char_ngrams"] == 5
    assert made.data.path == (str(data),) and found["command"].startswith("inkstone train")
    run = tool("train", tmp_path / "topics.toml", "--run", tmp_path / "run", "--json", "--quiet")
    assert run.code == 0, run.err
    score = run.json["scores"][0]["value"]
    assert bag["expected"]["low"] <= score <= bag["expected"]["high"]


def test_the_test_part_is_never_looked_at_for_scores(tool: Any, tmp_path: Path) -> None:
    """The same foretold score with other test answers."""
    data = labelled(tmp_path / "topics", 600)
    scores = []
    for label in ("cup", "law"):
        (data / "test.jsonl").write_text(json.dumps({"text": "the goal", "label": label}))
        told = tool("new", "--data", data, "--probe-seconds", 5, "--json", "--minutes", 1)
        scores.append(told.json["candidates"][0]["expected"])
    assert scores[0] == scores[1] and "1 to test on" in told.json["facts"]["examples"]


def test_for_people(tool: Any, tmp_path: Path) -> None:
    data = labelled(tmp_path / "topics", 400)
    told = tool("new", "--data", data, "--minutes", 1, "--probe-seconds", 0, "--yes")
    assert told.code == 0, told.err
    for part in ("classification", "bag_of_words", "not known", "why not bert", "topics.toml",
                 "inkstone train topics.toml --run runs/topics", "inkstone compare"):  # fmt: skip
        assert part in " ".join(told.out.split()), part
    text = (tmp_path / "topics.toml").read_text(encoding="utf-8")
    assert 'path = ["topics"]' in text and "# look: only 3" in text and "# 'label' holds" in text
    assert len([x for x in text.splitlines() if x.startswith("#")]) > 5


def test_nothing_is_overwritten(tool: Any, tmp_path: Path) -> None:
    data = labelled(tmp_path / "topics", 300)
    (tmp_path / "topics.toml").write_text("mine")
    given = ("new", "--data", data, "--probe-seconds", 0, "--quiet")
    assert tool(*given).code == 0
    assert (tmp_path / "topics.toml").read_text() == "mine"
    assert recipes.load(tmp_path / "topics-2.toml").task.name == "classification"
    told = tool(*given, "--output", tmp_path / "topics.toml")
    assert told.code == 2 and "there already" in told.err


def test_somebody_at_a_terminal_is_asked(
    tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = labelled(tmp_path / "topics", 300)
    rows = [json.loads(x) for x in (data / "train.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "kind": "ab"[row["id"] % 2]}) for row in rows]
    (data / "train.jsonl").write_text("\n".join(lines))
    answers = f"{data}\n\nkind\n3\nbret\nbert\n"  # the task, the label's field, minutes, family
    questions: list[str] = []
    left = iter(answers.split("\n"))

    def prompt(question: str, default: Any, type: type[Any], err: bool) -> Any:
        questions.append(question)
        return type(next(left) or default)

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr("sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    new.command(words=None, data=None, task=None, language=None, minutes=None, output=None,
                probe_seconds=0.0, yes=False, cache=None, device="cpu", json=False,
                quiet=True)  # fmt: skip
    assert [q.partition(" (")[0] for q in questions] == [
        "Data", "Task", "Field of the label", "Minutes to train", "Family",
        "One of bag_of_words, bert",
    ]  # fmt: skip
    made = recipes.load(tmp_path / "topics.toml")
    assert made.model.family == "bert" and made.training.minutes == 3.0
    assert made.task.fields["label_field"] == "kind"
    assert "chosen by hand" in (tmp_path / "topics.toml").read_text()


def test_tags_and_what_the_user_says(tool: Any, tmp_path: Path) -> None:
    rows = [
        {"words": ["see", f"w{i % 9}"], "pos": ["V", "N"], "ner": ["O", "B-X" if i % 2 else "O"]}
        for i in range(300)
    ]  # fmt: skip
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = tool("new", "task.tags_field=pos", "--data", "t.jsonl", "--json", "--probe-seconds", 2)
    assert told.code == 0, told.err
    found = told.json
    assert found["task"] == "tagging" and found["settings"]["tags_field"] == "pos"
    assert found["candidates"][0]["expected"]["value"] == 1.0
    assert "minutes" not in found["toml"]  # fitted at once


def test_translations_into_chinese_are_scored_by_characters(tool: Any, tmp_path: Path) -> None:
    rows = [{"en": f"It is number {i}.", "zh": f"这是第{i}个。"} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = tool("new", "--data", "t.jsonl", "--json", "--minutes", 0.1, "--yes")
    assert told.code == 0, told.err
    made = recipes.load(tmp_path / "t.toml")
    assert made.task.fields == {
        "source_field": "en", "target_field": "zh", "bleu_tokenizer": "zh",
    }  # fmt: skip
    assert made.model.family == "transformer" and "not known" in told.json["reasons"][0]


def test_plain_text(tool: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tool.corpus(tmp_path / "texts")
    lines = [json.loads(x)["text"] for x in (folder / "text.jsonl").read_text().splitlines()]
    (folder / "text.jsonl").unlink()
    for number, line in enumerate(lines):
        (folder / f"{number}.txt").write_text(line * 5)
    monkeypatch.setattr("inkstone.planning.constants.TIMED_SHAPES", 0)
    told = tool("new", "--data", folder, "--minutes", 0.2, "--json")
    assert told.code == 0, told.err
    found = told.json
    assert (found["task"], found["chosen"]) == ("language_modeling", "llama")
    ngram = next(x for x in found["candidates"] if x["family"] == "ngram")
    assert 0 < ngram["expected"]["value"] < 8 and "is to be beaten" in found["against"]["ngram"]
    assert recipes.load(tmp_path / "texts.toml").model.family == "llama"


def test_a_family_that_cannot_be_used_says_why(tool: Any, tmp_path: Path) -> None:
    data = labelled(tmp_path / "topics", 300)
    lines = [json.loads(x) for x in (data / "train.jsonl").read_text().splitlines()]
    rows = [{"text": row["text"], "labels": [row["label"]]} for row in lines]
    (data / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = tool("new", "--data", data, "--minutes", 0.1, "--json")
    assert told.code == 0, told.err
    assert told.json["settings"]["multi_label"] is True and told.json["chosen"] == "bert"
    assert "one label" in told.json["against"]["bag_of_words"]


def test_answers_begin_with_a_model_of_plain_text(tool: Any, tmp_path: Path) -> None:
    rows = [
        {"instruction": f"Is {n} odd?", "output": "Yes." if n % 2 else "No."} for n in range(60)
    ]
    (tmp_path / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    told = tool("new", "--data", tmp_path / "talks.jsonl", "--minutes", 0.1, "--json")
    assert told.code == 0, told.err
    assert told.json["task"] == "instructions" and told.json["chosen"] == "llama"
    assert "model.pretrained" in told.json["warnings"][0]
    pairs = [{"prompt": "Odd?", "chosen": "Yes.", "rejected": "No."}] * 20
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    told = tool("new", "--data", tmp_path / "pairs.jsonl", "--minutes", 0.1)
    assert told.code == 2 and "model that answers already" in told.err
    texts = [{"text": f"We meet at {n}. Bring cake.", "summary": f"At {n}."} for n in range(60)]
    (tmp_path / "mails.jsonl").write_text("\n".join(map(json.dumps, texts)))
    told = tool("new", "--data", tmp_path / "mails.jsonl", "--minutes", 0.1, "--json")
    assert told.code == 0, told.err
    assert told.json["task"] == "summarization"
    recipe = recipes.load(told.json["recipe"])
    assert recipe.model.family == told.json["chosen"] == "pointer_generator"
    extractive = ("new", "--task", "extractive_summarization", "--output", "chosen.toml")
    told = tool(*extractive, "--data", tmp_path / "mails.jsonl", "--probe-seconds", 2, "--json")
    assert told.code == 0 and told.json["chosen"] == "bag_of_words", told.err


def test_mistakes_are_typed(tool: Any, tmp_path: Path) -> None:
    assert tool("new").code == 2
    told = tool("new", "--data", tmp_path / "absent.jsonl")
    assert told.code == 1 and "does not exist" in told.err
    (tmp_path / "odd.jsonl").write_text('{"a": 1.5}\n' * 9)
    told = tool("new", "--data", tmp_path / "odd.jsonl")
    assert told.code == 2 and "say what is what" in told.err
    told = tool("new", "--data", tmp_path / "odd.jsonl", "--task", "taging")
    assert told.code == 2 and "tagging" in told.err
    assert tool("new", "--data", tmp_path / "odd.jsonl", "nonsense").code == 2


def test_real_tables_are_known(shared_data: Path, tmp_path: Path) -> None:
    from inkstone.recipe import Recipe

    for name, task in [("ag-news", "classification"), ("conll2003", "tagging"),
                       ("multi30k-en-de", "translation"), ("imdb", "classification"),
                       ("chnsenticorp-htl", "classification"), ("dailydialog", "dialogue"),
                       ("thucnews-titles", "classification"), ("aeslc", "summarization"),
                       ("scitldr-a", "summarization"),
                       ("squad-dev-sentences", "question_answering"),
                       ("instruct-demos/alpaca_zh.jsonl.gz", "instructions"),
                       ("instruct-demos/dpo_en.jsonl.gz", "preferences")]:  # fmt: skip
        paths = [str(shared_data / name)]
        if name == "thucnews-titles":
            paths = [str(shared_data / name / "dev.jsonl.gz")]
        assert advising.guess(Recipe().with_data(paths), None, {}).task == task, name
    text = Recipe().with_data([str(shared_data / "tinyshakespeare")])
    assert advising.guess(text, None, {}).task == "language_modeling"
