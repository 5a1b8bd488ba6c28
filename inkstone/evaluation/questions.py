"""Records as questions for a prompt: a text to continue, options if there are some, the answer.

What a record is follows from its fields: `choices` with an `answer` (its number, its letter or its
words) is a multiple choice; a `label` is one of the names of all labels; `answers`, `answer`,
`completion`, `output` or `target` alone is to be written. A line of a .txt file asks for its last
word (Paperno et al. 2016, "The LAMBADA dataset").
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from inkstone.errors import DataError, UsageError
from inkstone.tasks._base import label_text
from inkstone.text.config import TextConfig
from inkstone.text.files import STDIN, find_files, kind_of
from inkstone.text.log import ReadLog
from inkstone.text.normalize import normalize
from inkstone.text.readers import read_files
from inkstone.text.rows import kind_of_value, listed
from inkstone.text.table import TABLES, Record, read_table

ASKED = ("question", "goal", "prompt", "instruction", "sentence", "source", "text")
GIVEN = ("passage", "context", "article")
WRITTEN = ("answers", "answer", "completion", "output", "target")
_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Question:
    """What a model is asked.

    Attributes:
        prompt: What it reads; white space at the end belongs to the answer.
        options: What it may answer; () where it is to write.
        answers: What is right; of several, the first is shown in demonstrations.
        one_word: Of what it writes, the first word is the answer.
    """

    prompt: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    gap: str = " "
    one_word: bool = False

    def spaced(self, answer: str) -> str:
        """An answer with the white space that sets it apart from the prompt."""
        return self.gap + answer


@dataclass(frozen=True)
class Form:
    """How records become questions.

    Attributes:
        template: The prompt, with {field} where a field's text goes; None takes a usual one.
        labels: Names of the labels: in the order of their numbers, or all that there are. () takes
            the labels themselves.
    """

    template: str | None = None
    labels: tuple[str, ...] = ()

    def read(self, data: str | Path, config: TextConfig | None = None) -> list[Question]:
        """All questions of a table, or of the lines of a .txt file.

        Raises:
            DataError: A record is no question; says what it needs.
            UsageError: The template names a field that is not there.
        """
        config = config or TextConfig()
        tables: list[Path] = []
        texts: list[Path] = []
        for path in find_files(data):
            (tables if path == STDIN or kind_of(path) in TABLES else texts).append(path)
        if texts:
            lines = config.model_copy(update={"split_on": "line"})
            found = read_files(texts, config=lines, log=ReadLog(lines))
            return [self._of_line(document.text) for document in found if document.text.strip()]
        records = list(read_table(tables, (), config=config))
        names = self.labels or tuple(_labels(records))
        return [self._of_record(record, names) for record in records]

    def _of_line(self, line: str) -> Question:
        words = normalize(line).split()
        if len(words) < 2:
            raise DataError(f"{line[:40]!r} has no word before its last")
        return self._question({"text": " ".join(words[:-1])}, "{text}", (), words[-1:], True)

    def _of_record(self, record: Record, names: Sequence[str]) -> Question:
        values = record.values
        asked = next((f for f in ASKED if isinstance(values.get(f), str)), None)
        given = next((f for f in GIVEN if isinstance(values.get(f), str)), None)
        usual = f"{{{asked}}}" if asked in ("prompt", "text") else f"Question: {{{asked}}}\nAnswer:"
        if given is not None and asked is not None:
            usual = f"{{{given}}}\n{usual}"
        if "choices" in values:
            options = _choices(record)
            answers = [options[_place(record, options)]]
        elif "label" in values:
            options = list(names)
            answers = [_label(record, options, self.labels)]
            usual = f"{{{asked}}}\nLabel:"
        else:
            options, answers = [], _written(record)
        if self.template is None and asked is None:
            raise DataError(
                f"{record.place}: none of its fields ({listed(record.names)}) is a known question",
                fix='say how to ask: a template such as "Question: {field}\\nAnswer:"',
            )
        return self._question(values, usual, options, answers, False, record)

    def _question(
        self,
        values: Mapping[str, Any],
        usual: str,
        options: Sequence[str],
        answers: Sequence[str],
        one_word: bool,
        record: Record | None = None,
    ) -> Question:
        def fill(match: re.Match[str]) -> str:
            value = values.get(match[1])
            if isinstance(value, str | int | float):
                return normalize(str(value)).strip()
            where = f"{record.place}: " if record else ""
            raise UsageError(
                f"{where}the template asks for {{{match[1]}}}, which is no text here",
                fix=f"the record has the fields {listed(values)}",
            )

        text = _FIELD.sub(fill, usual if self.template is None else self.template)
        prompt = text.rstrip()
        return Question(
            prompt, tuple(options), tuple(answers), text[len(prompt) :] or " ", one_word
        )


def sample(questions: Sequence[Question], limit: int | None, seed: int = 0) -> list[Question]:
    """At most `limit` of the questions, drawn by chance and in their order."""
    if limit is None or limit >= len(questions):
        return list(questions)
    chosen = np.random.default_rng((seed, len(questions))).permutation(len(questions))[:limit]
    return [questions[i] for i in sorted(chosen)]


def _labels(records: Sequence[Record]) -> list[str]:
    found = {
        label_text(r.values["label"], r.place, "label") for r in records if "label" in r.values
    }
    return sorted(found)


def _label(record: Record, options: Sequence[str], named: Sequence[str]) -> str:
    label = label_text(record.values["label"], record.place, "label")
    if label in options:
        return label
    if named and label.isdecimal() and int(label) < len(named):
        return named[int(label)]
    raise DataError(
        f"{record.place}: no name is given to the label {label!r}",
        fix=f"name all labels, in the order of their numbers (given: {', '.join(options)})",
    )


def _choices(record: Record) -> list[str]:
    value = record.values["choices"]
    if isinstance(value, Mapping):  # {"text": [...], "label": ["A", ...]}
        value = value.get("text")
    sound = isinstance(value, list) and all(isinstance(x, str) and x.strip() for x in value)
    if not sound or len(value) < 2:
        raise DataError(
            f"{record.place}: choices is {kind_of_value(value)}, not a list of two texts or more"
        )
    return [normalize(x).strip() for x in value]


def _place(record: Record, options: Sequence[str]) -> int:
    """Which option is right: by number, letter or text."""
    value = next((record.values[n] for n in ("answer", "answerKey") if n in record.values), None)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(options):
        return value
    if isinstance(value, str):
        text = normalize(value).strip()
        if text in options:
            return options.index(text)
        if text in string.ascii_uppercase[: len(options)] and text:
            return string.ascii_uppercase.index(text)
    raise DataError(
        f"{record.place}: answer = {str(value)[:40]!r} is none of its {len(options)} choices",
        fix="write the number of the right one, from 0, or its letter, or its text",
    )


def _written(record: Record) -> list[str]:
    for name in WRITTEN:
        value = record.values.get(name)
        if isinstance(value, Mapping):  # {"text": [...], "answer_start": [...]}
            value = value.get("text")
        texts = [value] if isinstance(value, str | int | float) else value
        if (
            isinstance(texts, list)
            and texts
            and all(isinstance(x, str | int | float) for x in texts)
        ):
            return [normalize(str(x)).strip() for x in texts]
    raise DataError(
        f"{record.place}: it has the fields {listed(record.names)}, and no answer",
        fix=f"a question needs choices and answer, a label, or one of {', '.join(WRITTEN)}",
    )


def split(data: str | Path) -> tuple[Path, Path | None]:
    """What is asked and what is shown: of a folder with files named train… and test… or valid…,
    these; of anything else, itself and nothing."""
    path = Path(data)
    if not path.is_dir():
        return path, None
    files = find_files(path)
    train = [f for f in files if f.name.lower().startswith("train")]
    for part in ("test", "valid", "val", "dev"):
        asked = [f for f in files if f.name.lower().startswith(part)]
        if asked:
            return asked[0], train[0] if train else None
    return path, None


def read_both(
    form: Form, data: str | Path, demonstrations: str | Path | None = None
) -> tuple[list[Question], list[Question]]:
    """Questions, and where to draw demonstrations from ([]: from the questions).

    Args:
        form: How records become questions; labels without names are those of the demonstrations.
        data: As in `split`.
        demonstrations: A file of solved examples; None as in `split`.

    Raises:
        DataError: As for `Form.read`.
    """
    asked, shown = split(data)
    shown = shown if demonstrations is None else Path(demonstrations)
    if shown is None:
        return form.read(asked), []
    pool = form.read(shown)
    if not form.labels and len({question.options for question in pool}) == 1:
        form = replace(form, labels=pool[0].options)
    return form.read(asked), pool
