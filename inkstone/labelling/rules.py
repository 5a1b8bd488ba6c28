"""Weak rules: what a person knows of a class, as patterns that vote. A TOML file:

    [[rule]]
    label = "spam"
    keywords = ["prize", "claim now"]     # any of these words or phrases, in any case

    [[rule]]
    label = "ham"
    regex = '\\b(mum|dad|home)\\b'          # Python's regular expressions; (?i) for any case
    max_chars = 60                        # and no longer than this

    [[rule]]
    label = "spam"
    field = "sender"                      # another field than the text
    equals = "shortcode"

All conditions of a rule must hold for its vote; a rule that is not sure says nothing. `at_least`
and `at_most` compare numbers, `min_chars` and `max_chars` the length.
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, model_validator

from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.labelling.votes import ABSTAIN, Ints
from inkstone.text.bm25 import CJK
from inkstone.text.normalize import normalize

MAX_BYTES = 1 << 20
MAX_RULES = 1000
SECONDS = 1.0  # that one pattern may search one text, at least
_CJK = re.compile(f"[{CJK}]")


class Rule(Section):
    """One rule.

    Attributes:
        label: What it votes for.
        name: For the table and the labels' file; a name is made up where none is given.
        field: Which field it looks at; None is the text.
        keywords: Words or phrases, one of which must occur; whole words, in any case.
        regex: A pattern that must occur.
        equals: What the field must hold, white space and case apart.
        at_least: The smallest number that the field may hold.
        at_most: The largest.
        min_chars: The shortest length of the field.
        max_chars: The longest.
    """

    label: str = Field(min_length=1, max_length=200)
    name: str = Field(default="", max_length=200)
    field: str | None = Field(default=None, min_length=1)
    keywords: tuple[str, ...] = Field(default=(), max_length=10_000)
    regex: str | None = Field(default=None, min_length=1, max_length=10_000)
    equals: str | None = None
    at_least: float | None = None
    at_most: float | None = None
    min_chars: int | None = Field(default=None, ge=0)
    max_chars: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _sound(self) -> Rule:
        conditions = (self.regex, self.equals, self.at_least, self.at_most, self.min_chars,
                      self.max_chars)  # fmt: skip
        if not self.keywords and all(value is None for value in conditions):
            raise ValueError("no condition, so it would vote on everything")
        if not all(word.strip() for word in self.keywords):
            raise ValueError("an empty keyword")
        try:
            _ = self._patterns
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"the pattern cannot be read: {error}") from error
        return self

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        """All that must be found."""
        patterns = [] if self.regex is None else [re.compile(self.regex)]
        if self.keywords:
            patterns.append(re.compile("|".join(map(_whole, self.keywords)), re.IGNORECASE))
        return patterns

    def holds(self, value: Any) -> bool:
        """Whether all conditions hold of what a field contains; of a missing one none does."""
        if value is None:
            return False
        if self.at_least is not None or self.at_most is not None:
            number = _number(value)
            if number is None or not (
                (self.at_least is None or number >= self.at_least)
                and (self.at_most is None or number <= self.at_most)
            ):
                return False
        text = value if isinstance(value, str) else str(value)
        if (
            not (self.min_chars or 0)
            <= len(text)
            <= (len(text) if self.max_chars is None else self.max_chars)
        ):
            return False
        if self.equals is not None and _folded(text) != _folded(self.equals):
            return False
        return all(pattern.search(text) for pattern in self._patterns)


def load_rules(path: Path | str) -> list[Rule]:
    """Read a file of rules, as if it were hostile.

    Raises:
        DataError: It is missing, no TOML, or a rule is malformed; says which one and how.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES:,} bytes")
        values = tomllib.loads(raw.decode("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no TOML file: {error}") from error
    found = values.pop("rule", None)
    if values or not isinstance(found, list) or not 0 < len(found) <= MAX_RULES:
        extra = f"unknown key {next(iter(values))!r}" if values else "no [[rule]] in it"
        raise DataError(
            f"{path}: {extra}",
            fix='a rule looks like this: [[rule]], then label = "spam", keywords = ["prize"]',
        )
    rules: list[Rule] = []
    for number, fields in enumerate(found, 1):
        try:
            rule = Rule.model_validate(fields)
        except ValidationError as error:
            what = error.errors()[0]
            key = ".".join(map(str, what["loc"]))
            message = what["msg"].removeprefix("Value error, ")
            raise DataError(
                f"{path}, rule {number}: {key + ': ' if key else ''}{message}"
            ) from None
        label = normalize(rule.label.strip())
        name = rule.name or f"{label} {number}"
        if name in {other.name for other in rules}:
            raise DataError(f"{path}, rule {number}: the name {name!r} stands twice")
        rules.append(rule.model_copy(update={"name": name, "label": label}))
    return rules


def vote(
    rules: Sequence[Rule],
    texts: Sequence[str],
    fields: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> Ints:
    """What each rule says of each row: [N, R] places in `labels`, or ABSTAIN.

    Args:
        rules: The rules.
        texts: [N].
        fields: [N] the whole records, for rules about other fields.
        labels: The classes.

    Raises:
        DataError: A rule votes for another class, or its pattern takes too long.
    """
    for rule in rules:
        if rule.label not in labels:
            raise DataError(
                f"rule {rule.name!r} votes for {rule.label!r}, which is not among the labels",
                fix=f"the labels are {', '.join(labels)}; add it with --labels",
            )
    votes = np.full((len(texts), len(rules)), ABSTAIN)
    for j, rule in enumerate(rules):
        place = labels.index(rule.label)
        with _watched(rule) as reached:
            for i, (text, record) in enumerate(zip(texts, fields, strict=True)):
                reached[0] = i
                if rule.holds(text if rule.field is None else record.get(rule.field)):
                    votes[i, j] = place
    return votes


@contextlib.contextmanager
def _watched(rule: Rule) -> Iterator[list[int]]:
    """Patterns such as (a+)+b can take for ever; an alarm ends them, where one can be set.

    Gives a list for the number of the text that is being searched: where it is the same at two
    alarms, a search did not end.
    """
    reached = [0]
    if rule.regex is None or threading.current_thread() is not threading.main_thread():
        yield reached
        return
    seen = [-1]

    def tick(*_: Any) -> None:
        if seen[0] == reached[0]:
            raise DataError(
                f"rule {rule.name!r}: its pattern searched one text for more than {SECONDS:g} s",
                fix="a repetition of a repetition, as in (a+)+, can do that: write it otherwise",
            )
        seen[0] = reached[0]

    before = signal.signal(signal.SIGALRM, tick)
    signal.setitimer(signal.ITIMER_REAL, SECONDS, SECONDS)
    try:
        yield reached
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _whole(word: str) -> str:
    """A pattern of a whole word or phrase; scripts without spaces have no ends of words."""
    parts = r"\s+".join(map(re.escape, word.split()))
    start = r"(?<!\w)" if word[:1].isalnum() and not _CJK.match(word[0]) else ""
    end = r"(?!\w)" if word[-1:].isalnum() and not _CJK.match(word[-1]) else ""
    return start + parts + end


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
