"""What a model is given of a table of conversations, token by token, and what it learns of it.

A wrong loss mask makes no noise: training goes on, and the model learns to ask instead of to
answer. Here the rows of training are shown as they are made, by the code that makes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jinja2

from inkstone.errors import DataError
from inkstone.tasks._conversations import Taught
from inkstone.text.config import TextConfig
from inkstone.text.table import Record, read_table
from inkstone.tokenizers.config import TokenizerConfig
from inkstone.tokenizers.tokenizer import Tokenizer
from inkstone.tokenizers.train import train

SAMPLE = 2000  # conversations that a tokenizer is trained on where none is given
TEMPLATE = "look.html.jinja"


@dataclass(frozen=True, slots=True)
class Piece:
    """One token, or several that only together spell a character.

    Attributes:
        text: What it adds to the text; of a control token, its name.
        ids: Its ids.
        learned: Whether the model is trained to say it.
        control: Whether it is a control token.
    """

    text: str
    ids: tuple[int, ...]
    learned: bool
    control: bool


@dataclass(frozen=True, slots=True)
class Shown:
    """One row as a model is given it.

    Attributes:
        place: File and line of the record.
        name: Which of the rows that the record gives; "" where it gives one.
        row: Its ids, which of them are learned, and how many did not fit.
        pieces: The same to look at.
    """

    place: str
    name: str
    row: Taught
    pieces: tuple[Piece, ...]

    @property
    def n_learned(self) -> int:
        """Tokens that are learned."""
        return sum(self.row.learned)

    @property
    def head(self) -> str:
        """One line about it."""
        name = f", {self.name}" if self.name else ""
        cut = f", {self.row.cut:,} more that do not fit" if self.row.cut else ""
        return f"{self.place}{name}: {len(self.row.ids):,} tokens, {self.n_learned:,} learned{cut}"

    def to_dict(self) -> dict[str, Any]:
        """Ids and mask, ready for JSON."""
        return {
            "place": self.place,
            **({"name": self.name} if self.name else {}),
            "ids": self.row.ids,
            "learned": [int(wanted) for wanted in self.row.learned],
            "cut": self.row.cut,
        }


def look(
    data: str | Path, task: Any, tokenizer: Tokenizer | None, *, most: int, limit: int
) -> Iterator[Shown]:
    """The first conversations of a table, as rows of training.

    Args:
        data: As for training.
        task: One that has `seen`.
        tokenizer: Of the model; None trains one on the data, as a run from scratch does.
        most: Tokens of a row.
        limit: Records at most.

    Raises:
        DataError: A file or a record is malformed, or there is no record.
        TokenizerError: The chat template does not fit the conversations.
    """
    records = _records(data, task)
    if tokenizer is None:
        sample = list(islice(records, max(SAMPLE, limit)))
        texts = (text for record in sample for text in task.texts(task.read(record)))
        tokenizer, records = train(texts, TokenizerConfig()), iter(sample)
    tokenizer = task.adapt(tokenizer)
    for record in islice(records, limit):
        for name, row in task.seen(task.read(record), tokenizer, most):
            yield Shown(record.place, name, row, tuple(_pieces(row, tokenizer)))


def _records(data: str | Path, task: Any) -> Iterator[Record]:
    records = read_table(data, task.wanted, config=TextConfig())
    first = next(records, None)
    if first is None:
        raise DataError(f"{Path(data).name} holds no record")
    yield first
    yield from records


def _pieces(row: Taught, tokenizer: Tokenizer) -> Iterator[Piece]:
    decoder = tokenizer.stream(skip_special=False)
    waiting: list[int] = []
    for token, learned in zip(row.ids, row.learned, strict=True):
        waiting.append(token)
        text = decoder.push(token)
        if text:
            yield Piece(text, tuple(waiting), learned, token in tokenizer.special_ids)
            waiting = []
    if waiting:
        yield Piece(decoder.flush(), tuple(waiting), row.learned[-1], False)


def page(rows: Sequence[Shown], title: str) -> str:
    """The rows as one HTML page that loads nothing; every text in it is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(rows=rows, title=title, total=total(rows))


def total(rows: Iterable[Shown]) -> str:
    """One line about all rows."""
    rows = list(rows)
    tokens, learned = (
        sum(n) for n in ([len(r.row.ids) for r in rows], [r.n_learned for r in rows])
    )
    line = f"{len(rows):,} rows, {tokens:,} tokens, {learned / max(1, tokens):.0%} of them learned"
    cut = sum(row.row.cut > 0 for row in rows)
    return f"{line}; {cut:,} rows lose their end" if cut else line
