"""Which task a table is for: by names, by what fields hold, by what the user says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone import registry
from inkstone.errors import InkstoneError, UsageError
from inkstone.planning.detect import RULES, Guess, detect, look
from inkstone.text.table import Record

LONG = "the quick brown fox jumps over the lazy dog number"


def guess(rows: list[Mapping[str, Any]], task: str | None = None, **given: Any) -> Guess:
    records = [Record(row, tuple(row), "t.jsonl", i) for i, row in enumerate(rows, 1)]
    return detect(look(records), len(records), task, given)


def table(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{k: f(i) if callable(f) else f for k, f in columns.items()} for i in range(count)]


def text(i: int) -> str:
    return f"{LONG} {i}"


def test_texts_with_labels_are_classified() -> None:
    rows = table(60, id=lambda i: i, text=text, rating=lambda i: i % 10, label=lambda i: i % 2)
    found = guess(rows)
    assert (found.task, found.settings) == (
        "classification", {"text_field": "text", "label_field": "label"},
    )  # fmt: skip
    assert found.others == {"label_field": ["rating"]}
    assert guess(rows, label_field="rating").settings["label_field"] == "rating"
    sorted_rows = table(60, text=text, label="always this one, as the head of a sorted file")
    assert guess(sorted_rows[:1] * 60).task == "language_modeling"  # too long for a label
    assert guess(table(60, text=text, label=1)).task == "classification"
    mails = table(60, mail=text, spam=lambda i: bool(i % 3))
    assert guess(mails).settings == {"text_field": "mail", "label_field": "spam"}
    pairs = table(60, premise=text, hypothesis=text, label=lambda i: "yn"[i % 2])
    assert guess(pairs).settings["pair_field"] == "hypothesis"
    several = table(60, text=text, labels=lambda i: ["a", "b", "c"][: i % 4])
    assert guess(several).settings["multi_label"] is True


def test_words_with_tags_are_tagged() -> None:
    rows = table(
        40, tokens=lambda i: [f"w{i}", "x", f"y{i}"], pos=["A", "B", "C"], ner=["O", "B-X", "O"],
        sentence=text,
    )  # fmt: skip
    found = guess(rows)
    assert (found.task, found.settings["tags_field"]) == ("tagging", "ner")
    assert found.others == {"tags_field": ["pos"]}
    assert guess(rows, tags_field="pos").settings == {"tokens_field": "tokens", "tags_field": "pos"}
    uneven = table(40, tokens=lambda i: [f"w{i}", "x"], tags=["A"])
    with pytest.raises(UsageError, match="fit no task"):
        guess(uneven)


def test_two_languages_are_translated() -> None:
    found = guess(table(20, en=text, de=text, fr=text))
    assert (found.task, found.settings) == (
        "translation", {"source_field": "en", "target_field": "de"},
    )  # fmt: skip
    assert found.others == {"target_field": ["fr"]}
    assert guess(table(20, source=text, target=text)).task == "translation"
    told = {"source_field": "a", "target_field": "b"}
    assert guess(table(20, a=text, b=text), "translation", **told).settings == told


def test_texts_with_summaries_are_summarized() -> None:
    found = guess(table(20, id=lambda i: i, text=text, subject=lambda i: f"fox {i}"))
    assert (found.task, found.settings) == (
        "summarization", {"text_field": "text", "summary_field": "subject"},
    )  # fmt: skip
    listed = table(20, source=lambda i: [text(i)] * 3, targets=lambda i: [f"fox {i}"])
    assert guess(listed).settings == {"text_field": "source", "summary_field": "targets"}
    for choosing in ("extractive_summarization", "phrase_extraction"):
        assert guess(listed, choosing).settings["summary_field"] == "targets"
    assert "phrase_extraction" in found.reason
    whole = table(20, text=lambda i: text(i) * 9, summary=lambda i: text(i) * 4)
    assert "extractive_summarization" in guess(whole).reason
    mails = table(60, text=text, subject=lambda i: f"fox {i}", label=lambda i: i % 2)
    assert guess(mails).task == "classification"
    assert guess(table(20, source=text, target=lambda i: f"fox {i}")).task == "translation"
    longer = table(20, text=lambda i: f"fox {i}", summary=text)
    with pytest.raises(UsageError):
        guess(longer, "summarization")


def test_pairs_without_a_label_are_alike() -> None:
    found = guess(table(30, question=text, answer=lambda i: f"because {i}"))
    assert (found.task, found.settings) == (
        "similarity", {"text_field": "question", "pair_field": "answer"},
    )  # fmt: skip
    rows = table(30, sentence1=text, sentence2=text, score=lambda i: i / 7)
    assert guess(rows).settings["score_field"] == "score"


def test_conversations_and_plain_text() -> None:
    said = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    assert guess(table(5, messages=said)).task == "instructions"
    assert guess(table(5, conversations=said, chosen=said[1], rejected=said[1])).task == (
        "preferences"
    )
    assert guess(table(5, instruction=text, input="", output=text)).task == "instructions"
    assert guess(table(5, prompt=text, completion=text)).task == "instructions"
    assert guess(table(5, dialogue=said)).task == "dialogue"
    assert guess(table(5, utterances=["hi", "hello", "bye"])).task == "dialogue"
    assert guess(table(50, text=text)).task == "language_modeling"


def test_questions_with_answers() -> None:
    answers = {"text": ["x"], "answer_start": [0]}
    rows = table(5, question=text, context=text, answers=answers)
    if "question_answering" in registry.names("tasks"):
        assert guess(rows).task == "question_answering"
    else:
        with pytest.raises(UsageError, match="question answering"):
            guess(rows)


def test_what_cannot_be_told_says_how_to_tell() -> None:
    with pytest.raises(UsageError, match="'a', 'b'") as told:
        guess(table(30, a=lambda i: {"x": i}, b=1.5))
    assert "task.text_field" in str(told.value)
    with pytest.raises(UsageError, match="unknown task"):
        guess(table(30, text=text), "clasification")
    with pytest.raises(UsageError, match="'text', 'x'"):  # not taken for plain text
        guess(table(30, text=text, x=lambda i: i % 2), label_field="y")
    with pytest.raises(UsageError, match="fit tagging"):
        guess(table(30, text=text), "tagging")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2),
    max_leaves=5,
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["text", "label", "tokens", "tags", "en", "de", "messages", "x"]),
            values, max_size=4,
        ),
        max_size=6,
    )
)  # fmt: skip
def test_any_table_gets_an_answer_or_a_typed_error(rows: list[dict[str, Any]]) -> None:
    for task in (None, *RULES):
        try:
            found = guess(rows, task)
        except InkstoneError:
            continue
        known = {name for row in rows for name in row}
        fields = {v for k, v in found.settings.items() if k.endswith("_field")}
        assert fields <= known
