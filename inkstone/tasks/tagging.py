"""Tagging: every word of a sentence gets a tag (part of speech, chunk, named entity).

A word that the tokenizer cuts into pieces is scored at its first piece, as Devlin et al. 2019
(section 5.3) do; the other pieces have no target. Loss: −log softmax(scores)[tag], summed over
words. A sentence longer than a row is cut between words into several rows, so that every word has
a tag. Tags with spans (B-PER, I-PER, O) are judged by span F1, others by accuracy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.errors import DataError, UsageError
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows, knows_types, label_text, words_of
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.text.normalize import normalize
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer

# a Chinese character, a word (with -, ' or . inside), or a mark
WORD = re.compile(
    r"[\u3400-\u9fff\uf900-\ufaff]|[^\W\u3400-\u9fff]+(?:[-'’.,][^\W\u3400-\u9fff]+)*|[^\w\s]"
)
SPAN_LETTERS = frozenset("BIESLU")
TYPES = 5  # of tokens, where they say how a word was written

FAMILY = "bert"  # where the recipe names none


class Config(Section):
    """Settings of a tagging task.

    Attributes:
        tokens_field: Field of the words: a list, or one string with spaces between them.
        tags_field: Field of their tags, as many.
        marks_field: Field of marks that are known of the words beforehand, as many, and always will
            be (parts of speech, for chunks); read by the family crf.
        word_characters: Characters of a word that are read, by models that read characters.
        capitals: Tell the model how each word was written, by types of tokens beyond those of a
            first and a second text. None: where the tokenizer drops case, and the family has types.
    """

    tokens_field: str = Field(default="tokens", min_length=1)
    tags_field: str = Field(default="tags", min_length=1)
    marks_field: str | None = Field(default=None, min_length=1)
    word_characters: int = Field(default=24, ge=1, le=256)
    capitals: bool | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """Words, their tags (none where they are to be found) and their marks, if there are any."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tagging:
    """Words with the tags they were given.

    Attributes:
        tokens: The words.
        tags: One a word.
        scores: Probability of each.
    """

    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    scores: tuple[float, ...]

    def __str__(self) -> str:
        return " ".join(f"{w}/{t}" for w, t in zip(self.tokens, self.tags, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"tokens": list(self.tokens), "tags": list(self.tags), "scores": list(self.scores)}


class Task(_base.Task[Example, Tagging]):
    """Words to tags."""

    NAME = "tagging"
    EPOCHS = (20, 4)
    UNIT = "word"
    HEADS: ClassVar = {"encoder": "token", "markov": ""}
    FIELDS = ("tokens_field", "tags_field")
    LABELS = "tags_field"
    config: Config

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        field = self.config.tokens_field
        words = words_of(self.need(record, "tokens_field"), record.place, field)
        if not words:
            raise DataError(f"{record.place}: a sentence without words", fix="remove the line")
        marks = self._each(record, "marks_field", words) if self.config.marks_field else ()
        tags = self._each(record, "tags_field", words) if labelled else ()
        return Example(tuple(words), tags, marks)

    def _each(self, record: Record, setting: str, words: Sequence[str]) -> tuple[str, ...]:
        """One tag or mark a word."""
        field, value = getattr(self.config, setting), self.need(record, setting)
        what = setting.removesuffix("_field")
        value = value.split() if isinstance(value, str) else value
        if not isinstance(value, list) or len(value) != len(words):
            count = len(value) if isinstance(value, list) else "no list of"
            raise DataError(
                f"{record.place}: {len(words)} words, but {count} {what} in {field!r}",
                fix=f"write one {what.removesuffix('s')} a word",
            )
        return tuple(label_text(x, record.place, field) for x in value)

    def example(self, text: str) -> Example:
        """Words and marks of a plain text; Chinese is taken character by character."""
        return Example(tuple(WORD.findall(normalize(text))) or (text,))

    def texts(self, example: Example) -> Iterable[str]:
        return (" ".join(example.tokens),)

    def answers(self, example: Example) -> Iterable[str]:
        return example.tags

    def suit(
        self, tokenizer: Tokenizer, fields: Mapping[str, Any], *, scratch: bool
    ) -> dict[str, tuple[Any, str]]:
        drops_case = tokenizer.encode("A") == tokenizer.encode("a")
        has_types = knows_types(fields, "capitals", self.config.capitals)
        if self.config.capitals is not None or not (drops_case and has_types):
            return {}
        self.config = self.config.model_copy(update={"capitals": True})
        return {"capitals": (True, "the tokenizer drops case; types of tokens tell it")}

    @property
    def token_types(self) -> int:
        return TYPES if self.config.capitals else 0

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        if self.config.marks_field:
            raise _no_marks()
        return [self._rows(example, codec) for example in examples]

    def _rows(self, example: Example, codec: Codec) -> list[Row]:
        """One row, or several that are cut between words."""
        room = codec.max_length - 2
        rows: list[Row] = []
        tags = [self.ids.get(tag, IGNORE_INDEX) for tag in example.tags]
        for place, pieces in enumerate(codec.words(example.tokens)):
            pieces = pieces[:room]  # a word longer than a row
            if not rows or len(rows[-1]["ids"]) - 1 + len(pieces) > room:
                rows.append({"ids": [codec.start_id], "firsts": [], "tags": [], "words": []})
            row = rows[-1]
            row["firsts"].append(len(row["ids"]))
            row["ids"] += pieces
            row["tags"].append(tags[place] if tags else IGNORE_INDEX)
            row["words"].append(example.tokens[place])
        for row in rows:
            words = row.pop("words")
            if self.config.capitals:
                sizes = np.diff([*row["firsts"], len(row["ids"])])
                row["types"] = [0, *np.repeat([*map(written, words)], sizes), 0]
            row["ids"].append(codec.end_id)
            if self.alphabet:
                row["characters"] = self.character_ids(words, self.config.word_characters).ravel()
        return rows

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        input_ids, mask = pad([row["ids"] for row in rows], pad_id)
        targets = torch.full_like(input_ids, IGNORE_INDEX)
        for number, row in enumerate(rows):
            firsts = torch.from_numpy(np.asarray(row["firsts"], np.int64))
            targets[number, firsts] = torch.from_numpy(np.asarray(row["tags"], np.int64))
        types = pad([row["types"] for row in rows], 0)[0] if self.config.capitals else None
        characters = None
        if self.alphabet:
            widths = [len(row["characters"]) // len(row["firsts"]) for row in rows]
            characters = torch.zeros(*input_ids.shape, max(widths), dtype=torch.int64)
            for number, (row, width) in enumerate(zip(rows, widths, strict=True)):
                firsts = torch.from_numpy(np.asarray(row["firsts"], np.int64))
                found = np.asarray(row["characters"], np.int64).reshape(-1, width)
                characters[number, firsts, :width] = torch.from_numpy(found)
        return TokenBatch(input_ids, targets, mask, types, characters=characters)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        scores = model(**batch.inputs).float()
        total = torch.nn.functional.cross_entropy(
            scores.flatten(0, 1), batch.targets.flatten(), reduction="sum",
            ignore_index=IGNORE_INDEX,
        )  # fmt: skip
        return total, batch.n_targets

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        best = model(**batch.inputs).float().softmax(-1).max(-1)
        p, tags = best.values.cpu().numpy(), best.indices.cpu().numpy()
        firsts = [np.asarray(row["firsts"]) for row in rows]
        return [(tags[i, places], p[i, places]) for i, places in enumerate(firsts)]

    def predict(self, example: Example, outputs: Sequence[Any]) -> Tagging:
        tags = [self.labels[i] for found, _ in outputs for i in found]
        scores = [float(p) for _, found in outputs for p in found]
        return Tagging(example.tokens, tuple(tags), tuple(scores))

    @property
    def spans(self) -> bool:
        """Whether the tags mark spans: O, and a letter of B I E S L U before "-TYPE"."""
        parts = [label.partition("-") for label in self.labels if label != "O"]
        return bool(parts) and all(a in SPAN_LETTERS and dash and b for a, dash, b in parts)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("span_f1", "token_accuracy") if self.spans else ("token_accuracy",)

    def given(self, example: Example) -> Any:
        return example.tags

    def found(self, prediction: Tagging) -> Any:
        return prediction.tags

    def units(self, answer: Any) -> list[frozenset[str]]:
        return [frozenset((tag,)) for tag in answer]

    def always(self, label: str, example: Example) -> Any:
        return (label,) * len(example.tokens)

    def mistake(self, example: Example, prediction: Tagging) -> Mistake | None:
        triples = zip(prediction.tags, example.tags, prediction.scores, strict=True)
        wrong = [score for found, given, score in triples if found != given]
        if not wrong:
            return None
        pairs = zip(example.tokens, example.tags, prediction.tags, strict=True)
        shown = [(w, g, f) for w, g, f in pairs if g != f]
        return Mistake(
            sum(wrong), " ".join(example.tokens),
            " ".join(f"{w}/{g}" for w, g, _ in shown), " ".join(f"{w}/{f}" for w, _, f in shown),
        )  # fmt: skip

    def fit(self, model: Any, examples: Sequence[Example]) -> None:
        words, marks = self._columns(model, examples)
        model.fit(words, [e.tags for e in examples], **marks)

    def apply(self, model: Any, examples: Sequence[Example]) -> list[Tagging]:
        words, marks = self._columns(model, examples)
        column = {tag: place for place, tag in enumerate(model.tags)}
        tagged, p = model.tag(words, **marks), model.posteriors(words, **marks)
        out = []
        for example, tags, rows in zip(examples, tagged, p, strict=True):
            scores = [float(row[column[tag]]) for row, tag in zip(rows, tags, strict=True)]
            out.append(Tagging(example.tokens, tuple(tags), tuple(scores)))
        return out

    def _columns(self, model: Any, examples: Sequence[Example]) -> tuple[list[Any], dict[str, Any]]:
        """What a fitted model reads: the words, and marks where there are some."""
        words = [example.tokens for example in examples]
        if not self.config.marks_field:
            return words, {}
        if not hasattr(model, "with_marks"):
            raise _no_marks()
        if any(len(e.marks) != len(e.tokens) for e in examples):
            raise UsageError(
                f"this tagger needs a mark of each word, as in field {self.config.marks_field!r}",
                fix="give it a file of examples with --input, not a text",
            )
        return words, {"marks": [example.marks for example in examples]}


def written(word: str) -> int:
    """The type of its tokens: 2 Capitalised, 3 CAPITALS, 4 mIxed, 0 otherwise."""
    if word == word.lower():
        return 0
    if word[1:] == word[1:].lower():
        return 2
    return 3 if word == word.upper() else 4


def _no_marks() -> UsageError:
    return UsageError(
        "only the family crf reads marks beside the words",
        fix="set model.family=crf, or leave task.marks_field out",
    )
