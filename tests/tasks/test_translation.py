"""tasks/translation.py: documents part by part, their lines and paragraphs staying as they are."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inkstone.inference.predict import Predictor
from inkstone.tasks.translation import Config, Example, Task, Translation
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.train import train

TOKENIZER = train(["nothing"], TokenizerConfig(kind="byte"))
PAGE = "A dog runs. A cat\tsleeps!\n\n  Dr. Low eats.  It rains.\nOne more"


class Copying(torch.nn.Module):
    """A translator between equal languages."""

    device = torch.device("cpu")


def translator(mode: str, max_length: int, seen: list[str] | None = None) -> Predictor[Any, Any]:
    """Copies every row; tells what it was given as a row."""
    task = Task(Config.model_validate({"mode": mode}))

    def decode(model: Any, batch: Any) -> list[tuple[list[int], float]]:
        rows = [
            [i for i, real in zip(ids, mask, strict=True) if real and i != TOKENIZER.eos_id]
            for ids, mask in zip(batch.source_ids.tolist(), batch.source_mask.tolist(), strict=True)
        ]
        if seen is not None:
            seen.extend(TOKENIZER.decode(row) for row in rows)
        return [(row, -float(len(row))) for row in rows]

    task.decode, task.tokenizer = decode, TOKENIZER  # type: ignore[method-assign]
    return Predictor(task, Copying(), "seq2seq", TOKENIZER, max_length)


def translated(text: str, mode: str, max_length: int = 1000) -> tuple[Translation, list[str]]:
    seen: list[str] = []
    ((_, found),) = translator(mode, max_length, seen)([Example(text)])
    return found, sorted(seen)


def test_a_document_is_translated_sentence_by_sentence() -> None:
    found, seen = translated(PAGE, "document")
    assert found.text == "A dog runs. A cat\tsleeps!\n\n  Dr. Low eats. It rains.\nOne more"
    parts = ["A dog runs.", "A cat\tsleeps!", "Dr. Low eats.", "It rains.", "One more"]
    assert seen == sorted(parts)
    assert found.score == -sum(map(len, parts)) / len(parts)


def test_a_sentence_is_all_of_the_text_up_to_a_row() -> None:
    assert translated(PAGE, "sentence") == (Translation(PAGE, -float(len(PAGE))), [PAGE])
    assert translated(PAGE, "sentence", 10)[0].text == PAGE[:9]


def test_by_itself_only_what_is_too_long_is_taken_apart() -> None:
    assert translated(PAGE, "auto") == translated(PAGE, "sentence")
    lines = sorted(["A dog runs. A cat\tsleeps!", "Dr. Low eats.  It rains.", "One more"])
    assert translated(PAGE, "auto", 30)[1] == lines
    assert translated(PAGE, "auto", 16) == translated(PAGE, "document")


def test_no_space_stands_between_chinese_sentences() -> None:
    assert translated("他来了。 她走了！\n完。", "document")[0].text == "他来了。她走了！\n完。"


@pytest.mark.parametrize("mode", ["auto", "sentence", "document"])
def test_texts_keep_their_order_and_empty_ones_their_place(mode: str) -> None:
    texts = ["b. a.", "", " ", "c\n\nd. e.", "b. a."]
    found = [t.text for _, t in translator(mode, 50)([Example(text) for text in texts])]
    assert found == ["b. a.", "", "", "c\n\nd. e.", "b. a."]


@given(st.text(alphabet="ab.!。” \n\t", max_size=40), st.integers(2, 60))
def test_nothing_is_lost(text: str, max_length: int) -> None:
    def pressed(text: str) -> str:
        return re.sub(r"[^\S\n]", "", text).strip()

    found = translated(text, "document")[0].text
    assert pressed(found) == pressed(text)
    if len(text.encode()) < max_length:
        assert translated(text, "auto", max_length)[0].text == text.strip()
