"""The contract of a task on labelled examples: from a record of a table to a scored prediction.

A file of this room that holds a `Task` says, in this order, what an example looks like (`read`),
how it becomes rows of ids (`encode`) and a batch (`collate`), which kinds of model and which head
it needs (`HEADS`), its loss, its prediction, and by which scores it is judged.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from inkstone.errors import DataError, UsageError
from inkstone.nn.pooling import Mode
from inkstone.tasks._batch import TokenBatch
from inkstone.tasks._codec import Codec
from inkstone.text.normalize import normalize
from inkstone.text.rows import kind_of_value, listed, text_of
from inkstone.text.table import Record
from inkstone.tokenizers.roles import Roles
from inkstone.tokenizers.tokenizer import Tokenizer

MAX_LABELS = 10_000
Row = dict[str, Any]
"""One encoded row: columns of ids, as `corpora.examples.ExampleTable` keeps them."""
UNKNOWN_CHARACTER = 1  # 0 pads
MAX_CHARACTERS = 4096
Rows = Sequence[Mapping[str, Any]]
E = TypeVar("E")  # an example
P = TypeVar("P")  # a prediction


@dataclass(frozen=True, slots=True)
class Mistake:
    """A wrong prediction, for the report.

    Attributes:
        badness: Larger is worse; comparable within one task.
        text: The input.
        given: The right answer, as text.
        found: The predicted one.
    """

    badness: float
    text: str
    given: str
    found: str


class Task(ABC, Generic[E, P]):
    """What a model learns from examples, and how it is used afterwards.

    Args:
        config: The task's own settings.
        labels: Names of what is predicted, in the order of their ids; () where there are none.
        counts: How often each label occurs in training, for class weights.
        characters: The alphabet, for models that read characters too.
    """

    NAME: ClassVar[str]
    UNIT: ClassVar[str]  # what one target of the loss is: an example, a word, a token
    HEADS: ClassVar[Mapping[str, str]]  # kind of model → config.head that it needs ("": none)
    FIELDS: ClassVar[tuple[str, ...]]  # settings that name a needed field
    LABELS: ClassVar[str] = ""  # the setting that names the field of the labels, if there are any
    LENGTHS: ClassVar[tuple[str, ...]] = ("ids",)  # columns that are padded apart
    # Passes over the examples after which more buy little: from scratch, and from pretrained
    # weights (Devlin et al. 2019, appendix A.3: 2 to 4).
    EPOCHS: ClassVar[tuple[int, int]] = (10, 3)
    RATE: ClassVar[float] = 1.0  # of fine-tuning, times the usual one
    SPECIALS: ClassVar[tuple[str, ...]] = ()  # control tokens that it needs besides the usual ones
    REFERS: ClassVar[bool] = False  # learns beside what its pretrained weights say, by `refer`
    TALKS: ClassVar[bool] = False  # its models answer in conversations; the report shows some

    def __init__(
        self,
        config: Any,
        labels: Sequence[str] = (),
        *,
        counts: Mapping[str, int] | None = None,
        characters: str = "",
    ) -> None:
        self.config = config
        self.labels = tuple(labels)
        self.ids = {label: number for number, label in enumerate(self.labels)}
        self.counts = dict(counts or {})
        self.alphabet = characters
        self._character_ids = {c: i for i, c in enumerate(characters, UNKNOWN_CHARACTER + 1)}

    @staticmethod
    def roles(kind: str) -> Roles | None:
        """What a new tokenizer of this kind has for control tokens; None: the usual ones."""
        return None

    # --- what an example looks like --------------------------------------------------------------

    @abstractmethod
    def read(self, record: Record, *, labelled: bool = True) -> E:
        """An example out of a record.

        Args:
            record: A row of a table.
            labelled: Whether the answer must be there.

        Raises:
            DataError: A field is missing or holds something else; says how to mend it.
        """

    @abstractmethod
    def example(self, text: str) -> E:
        """An example without an answer, of a plain text."""

    @abstractmethod
    def texts(self, example: E) -> Iterable[str]:
        """The text that a tokenizer is trained on."""

    def together(self, example: E) -> Iterable[str]:
        """The text that may not stand on both sides of a split."""
        return self.texts(example)

    def answers(self, example: E) -> Iterable[str]:
        """The labels of an example."""
        return ()

    @property
    def wanted(self) -> list[str]:
        """Names of the fields that are read, as far as they are there."""
        settings = self.config.model_dump()
        return [v for k, v in settings.items() if k.endswith("_field") and v is not None]

    # --- how it becomes a batch ------------------------------------------------------------------

    @abstractmethod
    def encode(self, examples: Sequence[E], codec: Codec) -> list[list[Row]]:
        """Rows of each example: one, or several where it is longer than a row may be."""

    @abstractmethod
    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        """Rows as a batch."""

    def lengths(self, rows: Rows) -> npt.NDArray[np.int64]:
        """[N, K]: how long each row is, by the columns that are padded apart."""
        return np.array([[len(row[c]) for c in self.LENGTHS] for row in rows], np.int64)

    # --- what the model does ---------------------------------------------------------------------

    def refer(self, model: Any, rows: Rows, pad_id: int) -> None:
        """Of a task that `REFERS`: keep what the pretrained weights say of some rows."""

    @abstractmethod
    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        """Summed loss in nats (fp32 scalar with a graph) and how many targets it is of."""

    @abstractmethod
    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        """What the model says about each row, in a form that is small enough to keep."""

    @abstractmethod
    def predict(self, example: E, outputs: Sequence[Any]) -> P:
        """The answer, out of the outputs of all rows of an example."""

    def parts(self, example: E, codec: Codec) -> list[E]:
        """What of an example is predicted by itself: all of it, unless it is a whole document."""
        return [example]

    def join(self, example: E, parts: Sequence[E], predictions: Sequence[P]) -> P:
        """The answer, out of those of its parts."""
        return predictions[0]

    @property
    def pooling(self) -> Mode | None:
        """How the states of a text's tokens become its vector, of a task that makes vectors."""
        return None

    # --- how it is judged ------------------------------------------------------------------------

    @property
    @abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of scores in `evaluation.scores`; the first is the one to quote."""

    @abstractmethod
    def given(self, example: E) -> Any:
        """The right answer, comparable with `found`."""

    @abstractmethod
    def found(self, prediction: P) -> Any:
        """The predicted answer."""

    @abstractmethod
    def mistake(self, example: E, prediction: P) -> Mistake | None:
        """What is wrong with a prediction; None when nothing is."""

    @property
    def watched(self) -> bool:
        """Whether its scores on held-out examples are taken during training, not the loss alone."""
        return bool(self.labels)

    def among(self, found: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """Answers in their last form, of a task that needs all of them to say what each is."""
        return list(found)

    def units(self, answer: Any) -> list[frozenset[str]]:
        """The labels of each thing that is labelled, of an answer as `found` gives it."""
        return []

    def always(self, label: str, example: E) -> Any:
        """The answer that knows one label only, as `found` gives it."""
        return label

    def simplest(self, examples: Sequence[E]) -> tuple[str, list[Any]] | None:
        """What the simplest answers are called, and they as `found` gives them; None if unknown."""
        if not self.counts:
            return None
        top = max(self.counts, key=lambda label: (self.counts[label], label))
        return f"always {top!r}", [self.always(top, example) for example in examples]

    # --- what can only be chosen when a model is there -------------------------------------------

    @property
    def unsettled(self) -> bool:
        """Whether `settle` has something to choose."""
        return False

    def settle(self, examples: Sequence[E], predictions: Sequence[P]) -> str | None:
        """Choose, from predictions of examples that were not trained on; a line about it."""
        return None

    # --- models that are fitted at once, not trained step by step --------------------------------

    def fit(self, model: Any, examples: Sequence[E]) -> None:
        """Fit a model of `KIND` "linear" or "markov" to the training examples."""
        raise AssertionError(f"{self.NAME} knows no model that is fitted")

    def apply(self, model: Any, examples: Sequence[E]) -> list[P]:
        """Predictions of such a model."""
        raise AssertionError(f"{self.NAME} knows no model that is fitted")

    # --- shared parts ----------------------------------------------------------------------------

    def connect(self, tokenizer: Tokenizer) -> None:
        """Told the model's tokenizer, ahead of training and of use."""

    def suit(
        self, tokenizer: Tokenizer, fields: Mapping[str, Any], *, scratch: bool
    ) -> dict[str, tuple[Any, str]]:
        """Take on the settings that go by what a new run begins with.

        Args:
            tokenizer: The one it will read by.
            fields: Those of the family's configuration.
            scratch: It begins without weights.

        Returns:
            Their names, values and reasons.

        Raises:
            UsageError: One that was given does not fit.
        """
        return {}

    @property
    def token_types(self) -> int:
        """How many types of tokens its rows have; 0: as many as the family knows, or none."""
        return 0

    def adapt(self, tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer that it needs, out of the one that pretrained weights came with."""
        return tokenizer

    def arrange(self, rows: Iterable[Row], codec: Codec) -> Iterator[Row]:
        """All rows as they are trained on: in another order, or several in one."""
        return iter(rows)

    def plain(self, ids: Sequence[int]) -> Row:
        """Of a task that can learn it: a row of plain text, of which every token is learned."""
        raise AssertionError(f"{self.NAME} learns no plain text")

    def prompt(self, example: E) -> list[dict[str, str]]:
        """Of a task that `TALKS`: the messages to answer, for the samples of a report."""
        return []

    def learn(self, examples: Iterable[E]) -> Task[E, P]:
        """The same task with the labels (and the alphabet) of the training examples.

        Raises:
            DataError: Fewer than two labels, or so many that they cannot be labels.
        """
        counts: Counter[str] = Counter()
        letters: Counter[str] = Counter()
        for example in examples:
            counts.update(self.answers(example))
            for text in self.texts(example):
                letters.update(text)
            if len(counts) > MAX_LABELS:
                raise DataError(
                    f"more than {MAX_LABELS:,} different labels, such as {next(iter(counts))!r}",
                    fix=f"name the field that holds the labels with task.{self.LABELS}",
                )
        if self.LABELS and len(counts) < 2:
            only = f" ({next(iter(counts))!r})" if counts else ""
            raise DataError(
                f"the training examples have {len(counts)} label{only}; telling apart needs two",
                fix=f"check task.{self.LABELS} and the data",
            )
        alphabet = "".join(sorted(c for c, n in letters.items() if n > 1))[:MAX_CHARACTERS]
        return type(self)(
            self.config, sorted(counts, key=_by_number), counts=counts, characters=alphabet
        )

    def text(self, record: Record, setting: str) -> str:
        """The text of the field that a setting names, normalised.

        Raises:
            DataError: As in `read`.
        """
        field = getattr(self.config, setting)
        self.need(record, setting)
        return normalize(text_of(record.values, field, record.place, option=f"task.{setting}"))

    def need(self, record: Record, setting: str) -> Any:
        """The value of the field that a setting names.

        Raises:
            DataError: The record has no such field; says which it has and what to set.
        """
        field = getattr(self.config, setting)
        if field in record.values:
            return record.values[field]
        needed = [getattr(self.config, name) for name in self.FIELDS]
        raise DataError(
            f"{record.place}: it has the fields {listed(record.names)}; "
            f"{self.NAME} needs {' and '.join(map(repr, needed))}",
            fix=self._advice(record, setting),
        )

    def character_ids(self, words: Sequence[str], most: int) -> npt.NDArray[np.int64]:
        """[words, C] ids of characters, at most `most` a word: 0 pads, 1 is unknown."""
        width = max(1, min(most, max(map(len, words), default=1)))
        out = np.zeros((len(words), width), np.int64)
        for number, word in enumerate(words):
            found = [self._character_ids.get(c, UNKNOWN_CHARACTER) for c in word[:width]]
            out[number, : len(found)] = found
        return out

    def _advice(self, record: Record, setting: str) -> str:
        """One line that mends a missing field."""
        known = set(self.wanted)
        free = [name for name in record.names if name not in known] or list(record.names)
        guess = next((n for n in free if _looks_like(setting, record.values.get(n))), free[0])
        return f"name the right one: task.{setting}={guess}"

    def info(self) -> dict[str, Any]:
        """What a model folder must remember to be used again; JSON-ready."""
        return {
            "task": self.NAME,
            "task_settings": self.config.model_dump(mode="json"),
            "labels": list(self.labels),
            "characters": self.alphabet,
        }


def label_text(value: Any, place: str, field: str) -> str:
    """A label as text: 1 and "1" are the same label.

    Raises:
        DataError: It is no text, number or truth value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    if isinstance(value, str) and value.strip():
        return normalize(value.strip())
    what = "nothing" if value in ("", None) else kind_of_value(value)
    raise DataError(
        f"{place}: field {field!r} holds {what}, not a label",
        fix="write a name or a whole number there, or remove the line",
    )


def words_of(value: Any, place: str, field: str) -> list[str]:
    """A list of strings, or one string with spaces between them (as in a .csv).

    Raises:
        DataError: It is something else.
    """
    if isinstance(value, str):
        return normalize(value).split()
    if isinstance(value, list) and all(isinstance(word, str) for word in value):
        return [normalize(word) for word in value]
    raise DataError(
        f"{place}: field {field!r} holds {kind_of_value(value)}, not a list of words",
        fix='write ["one", "word", "each"], or the words in one string with spaces between',
    )


def knows_types(fields: Mapping[str, Any], setting: str, wanted: bool | None) -> bool:
    """Whether a family tells types of tokens apart.

    Args:
        fields: Of its configuration.
        setting: What of the task would have types of its own.
        wanted: Its value, where one was given.

    Raises:
        UsageError: It was wanted, and the family does not.
    """
    known = "n_token_types" in fields and fields["n_token_types"].default > 1
    if wanted and not known:
        raise UsageError(
            f"this family knows no types of tokens, which task.{setting} needs",
            fix=f"set model.family=bert, or leave task.{setting} out",
        )
    return known


def _by_number(label: str) -> tuple[int, int, str]:
    """Whole numbers in their order, then names."""
    digits = label.lstrip("-")
    if digits.isascii() and digits.isdigit() and len(digits) < 19:
        return 0, int(label), label
    return 1, 0, label


def _looks_like(setting: str, value: Any) -> bool:
    if setting in {"tokens_field", "tags_field"}:
        return isinstance(value, list)
    if setting == "answers_field":
        return isinstance(value, list | dict)
    if setting == "label_field":
        return isinstance(value, int | bool) or (isinstance(value, str) and len(value) < 40)
    return isinstance(value, str)
