"""Supervised fine-tuning: a decoder learns to answer, from conversations that show how.

Ouyang et al. 2022 ("Training language models to follow instructions with human feedback", section
3.5, "SFT"). A conversation is written by the chat template that is saved with the model, the one
that `inkstone chat` and transformers' `apply_chat_template` use, so all three give the same ids.
Loss: −Σ log p(x_t | x_<t) in nats, over what the assistant says and the control token that ends it;
what it is told is read and not learned.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.tasks._conversations import (
    FIELDS,
    Taught,
    messages_of,
    packed,
    shifted,
    taught,
    turns_in,
)  # fmt: skip
from inkstone.tasks._turns import ASSISTANT, USER
from inkstone.text.normalize import normalize
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer


class Config(Section):
    """Settings of supervised fine-tuning.

    Attributes:
        messages_field: Field of the conversation. None recognises the shape of a record by its
            fields: messages or conversations, Alpaca's, or prompt and completion.
        pack: Put several short conversations in a row; attention does not cross from one to
            another, and positions restart. A row then takes the same time whatever it holds.
    """

    messages_field: str | None = Field(default=None, min_length=1)
    pack: bool = True


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation.

    Attributes:
        roles: Who speaks, turn by turn: "system", "user" or "assistant".
        texts: What is said.
    """

    roles: tuple[str, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model makes of a conversation.

    Attributes:
        nats: Loss over the assistant's tokens.
        tokens: How many these are.
    """

    nats: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.nats / max(1, self.tokens):.3f} nats per token of the answers"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"nats": self.nats, "tokens": self.tokens}


class Task(_base.Task[Example, Heard]):
    """Conversations, of which the answers are learned."""

    NAME = "instructions"
    UNIT = "token"
    HEADS: ClassVar = {"causal": ""}
    FIELDS = ()
    TALKS = True
    config: Config

    # --- what an example looks like --------------------------------------------------------------

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        """A conversation; one without an answer is read too, and nothing is learned of it."""
        return Example(*turns_in(record, self.config.messages_field, answered=labelled))

    def example(self, text: str) -> Example:
        return Example((USER,), (normalize(text),))

    def texts(self, example: Example) -> Iterable[str]:
        return example.texts

    def together(self, example: Example) -> Iterable[str]:
        """All answers to one question are held out, or none."""
        return self._asked(example)[1]

    def prompt(self, example: Example) -> list[dict[str, str]]:
        return messages_of(*self._asked(example))

    @property
    def wanted(self) -> list[str]:
        return [*super().wanted, *FIELDS]

    # --- how it becomes a batch ------------------------------------------------------------------

    def adapt(self, tokenizer: Tokenizer) -> Tokenizer:
        return tokenizer.for_chat()

    def seen(self, example: Example, tokenizer: Tokenizer, most: int) -> list[tuple[str, Taught]]:
        """The conversation as the model sees it, with what it learns of it.

        One that is longer than a row gives several, which have names.

        Args:
            example: A conversation.
            tokenizer: With a chat template.
            most: Ids a row at most.

        Raises:
            TokenizerError: The template fails, or ends answers with no control token.
        """
        parts = list(taught(messages_of(example.roles, example.texts), tokenizer.chat_format, most))
        several = len(parts) > 1
        return [(f"part {n}" if several else "", part) for n, part in enumerate(parts, 1)]

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        """Rows of each conversation; parts without an answer are left out."""
        return [
            [
                shifted(part)
                for _, part in self.seen(example, codec.tokenizer, codec.max_length)
                if any(part.learned[1:])
            ]
            for example in examples
        ]

    def arrange(self, rows: Iterable[Row], codec: Codec) -> Iterator[Row]:
        return packed(rows, codec.max_length - 1) if self.config.pack else iter(rows)

    def plain(self, ids: Sequence[int]) -> Row:
        return shifted(Taught(list(ids), [True] * len(ids)))

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        """Padding stands at the end, where no causal model looks: no mask is needed."""
        input_ids, _ = pad([row["ids"] for row in rows], pad_id)
        targets, _ = pad([row["targets"] for row in rows], IGNORE_INDEX)
        segments, _ = pad([row["segments"] for row in rows], -1)
        alone = bool((segments <= 0).all())
        return TokenBatch(input_ids, targets, segment_ids=None if alone else segments)

    # --- what the model does ---------------------------------------------------------------------

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        hidden = model.hidden(batch.input_ids, segment_ids=batch.segment_ids)
        total, count = chunked_cross_entropy(hidden, model.head_weight, batch.targets)
        extra = model.extra_loss()
        return (total if extra is None else total + extra * count), count

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        """Nats of the answers of each row, and how many tokens they are of."""
        hidden = model.hidden(batch.input_ids, segment_ids=batch.segment_ids)
        found = []
        for states, targets in zip(hidden, batch.targets, strict=True):
            total, count = chunked_cross_entropy(states, model.head_weight, targets)
            found.append((total.item(), count))
        return found

    def predict(self, example: Example, outputs: Sequence[Any]) -> Heard:
        return Heard(sum(nats for nats, _ in outputs), sum(count for _, count in outputs))

    # --- how it is judged ------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("perplexity",)

    def given(self, example: Example) -> Any:
        return None

    def found(self, prediction: Heard) -> Any:
        return prediction.nats, prediction.tokens

    def mistake(self, example: Example, prediction: Heard) -> Mistake | None:
        return None

    def info(self) -> dict[str, Any]:
        return {**super().info(), "dialogue_trained": True}

    def _asked(self, example: Example) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The turns before the first answer."""
        roles = example.roles
        end = roles.index(ASSISTANT) if ASSISTANT in roles else len(roles)
        return roles[:end], example.texts[:end]
