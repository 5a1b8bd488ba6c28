"""Dialogue: a decoder learns to speak in turns, and to rate what it said, after LaMDA.

Thoppilan et al. 2022 ("LaMDA: Language Models for Dialog Applications"). Pre-training (section 3)
predicts every word of a conversation. Fine-tuning (section 6.1) teaches one model two things:

    generative      context · sentinel · response                        loss on the response
    discriminative  context · sentinel · response · attribute · rating   loss on the rating

Here the sentinel is the mark of the assistant's turn and a rating is <|yes|> or <|no|>, so that
P(<|yes|>) among the two is the score of a response. All marks are control tokens, which no text can
hold. Loss: −log p in nats, summed over words and, `rating_weight` times, over ratings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.errors import DataError
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.tasks._turns import ASSISTANT, SPECIALS, USER, Frame, rating_of, turns_of
from inkstone.text.normalize import normalize
from inkstone.text.rows import listed
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer

FAMILY = "lamda"  # where the recipe names none
CONVERSATIONS = ("messages", "conversations", "conversation", "dialogue", "dialog", "turns",
                 "utterances")  # fmt: skip


class Config(Section):
    """Settings of a dialogue task.

    Attributes:
        turns_field: Field of a conversation: a list of {"role", "content"}, {"from", "value"} or
            {"speaker", "utterance"}, or of texts that two speakers say in turn. None takes the
            first usual name that is there.
        learn: What is learned of a conversation: "all" that is said (pre-training), or the
            "answers" of the assistant.
        context_field: Of a rated response, what was said before: as above, or one text.
        response_field: The response.
        attribute_field: By what it is rated, in a word: "sensible", "safe".
        rating_field: 1 or 0, or yes or no.
        rating_weight: A rating counts as much as so many words.
    """

    turns_field: str | None = Field(default=None, min_length=1)
    learn: Literal["all", "answers"] = "all"
    context_field: str = Field(default="context", min_length=1)
    response_field: str = Field(default="response", min_length=1)
    attribute_field: str = Field(default="attribute", min_length=1)
    rating_field: str = Field(default="rating", min_length=1)
    rating_weight: float = Field(default=10.0, gt=0, le=1e6)


@dataclass(frozen=True, slots=True)
class Example:
    """A conversation, or one whose last turn was rated.

    Attributes:
        roles: Who speaks, turn by turn: "user", "assistant", "system", or "source" for a text that
            was looked up.
        texts: What is said.
        attribute: By what the last turn was rated; "" for a conversation.
        rating: Whether it has that quality.
    """

    roles: tuple[str, ...]
    texts: tuple[str, ...]
    attribute: str = ""
    rating: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model makes of an example.

    Attributes:
        nats: Loss over the words that were to be predicted.
        tokens: How many these were.
        probability: Of a good rating; None where none was asked for.
    """

    nats: float
    tokens: int
    probability: float | None = None

    def __str__(self) -> str:
        if self.probability is not None:
            return f"{self.probability:.3f}"
        return f"{self.nats / max(1, self.tokens):.3f} nats per token"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        if self.probability is not None:
            return {"probability": self.probability}
        return {"nats": self.nats, "tokens": self.tokens}


class Task(_base.Task[Example, Heard]):
    """Conversations and ratings.

    Attributes:
        attributes: What responses are rated by, in alphabetical order.
        frame: The control tokens; known once there is a tokenizer.
    """

    NAME = "dialogue"
    UNIT = "token"
    HEADS: ClassVar = {"causal": ""}
    FIELDS = ()
    SPECIALS = SPECIALS
    config: Config
    frame: Frame | None = None

    def __init__(
        self,
        config: Any,
        labels: Sequence[str] = (),
        *,
        counts: Mapping[str, int] | None = None,
        characters: str = "",
    ) -> None:
        super().__init__(config, counts=counts)
        self.attributes = tuple(labels) or tuple(sorted({_attribute(x) for x in self.counts}))

    # --- what an example looks like --------------------------------------------------------------

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        c, values = self.config, record.values
        if c.response_field in values and c.context_field in values:
            roles, texts = turns_of(
                values[c.context_field], record.place, c.context_field, answered=True
            )
            response = self.text(record, "response_field").strip()
            attribute = self.text(record, "attribute_field").strip()
            if not attribute or not response:
                raise DataError(
                    f"{record.place}: a rated response needs a response and the name of a quality",
                    fix="write both, or remove the line",
                )
            rating = False
            if labelled:
                rating = rating_of(values.get(c.rating_field), record.place, c.rating_field)
            return Example((*roles, ASSISTANT), (*texts, response), attribute, rating)
        names = CONVERSATIONS if c.turns_field is None else (c.turns_field,)
        field = next((name for name in names if name in values), None)
        if field is None:
            raise DataError(
                f"{record.place}: it has the fields {listed(record.names)}, and no conversation",
                fix="name its field with task.turns_field, or give rated responses: "
                f"{c.context_field}, {c.response_field}, {c.attribute_field}, {c.rating_field}",
            )
        roles, texts = turns_of(values[field], record.place, field)
        if not any(map(self._learned, roles)):
            raise DataError(
                f"{record.place}: nobody whose words are learned speaks in {field!r}",
                fix='remove the line, or learn what both say with task.learn="all"',
            )
        return Example(roles, texts)

    def example(self, text: str) -> Example:
        return Example((USER,), (normalize(text),))

    def texts(self, example: Example) -> Iterable[str]:
        return (*example.texts, example.attribute) if example.attribute else example.texts

    def together(self, example: Example) -> Iterable[str]:
        """All responses to one context are held out, or none."""
        return example.texts[:-1] if example.attribute else example.texts

    def answers(self, example: Example) -> Iterable[str]:
        if example.attribute:
            yield f"{example.attribute}: {'yes' if example.rating else 'no'}"

    @property
    def wanted(self) -> list[str]:
        return [*super().wanted, *(CONVERSATIONS if self.config.turns_field is None else ())]

    # --- how it becomes a batch ------------------------------------------------------------------

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        frame = Frame(codec.tokenizer)
        encoded = iter(codec.tokenizer.encode_batch([t for e in examples for t in e.texts]))
        rows = []
        for example in examples:
            turns = [frame.turn(role, next(encoded)) for role in example.roles]
            if example.attribute:
                asked = frame.ask(example.attribute)
                rated = [frame.yes if example.rating else frame.no]
                ids = _last([*_flat(turns), *asked], codec.max_length - 1)
                rows.append([_shifted([*ids, *rated], [False] * len(ids) + [True])])
            else:
                rows.append(self._windows(example.roles, turns, codec.max_length))
        return rows

    def _windows(self, roles: Sequence[str], turns: list[list[int]], most: int) -> list[Row]:
        """Rows of at most `most` ids; each turn is learned once, with turns before it as context.

        A conversation that is too long is cut between turns, and at most half of a row repeats
        what was there before.
        """
        turns = [turn if len(turn) <= most else [*turn[: most - 1], turn[-1]] for turn in turns]
        rows: list[Row] = []
        done = 0
        while done < len(turns):
            start, room = done, most - len(turns[done])
            while start and len(turns[start - 1]) <= room - most // 2:
                start -= 1
                room -= len(turns[start])
            end = done + 1
            while end < len(turns) and len(turns[end]) <= room:
                room -= len(turns[end])
                end += 1
            learned = [
                self._learned(roles[i]) and i >= done and place > 0
                for i in range(start, end)
                for place in range(len(turns[i]))
            ]
            row = _shifted(_flat(turns[start:end]), learned)
            if any(target != IGNORE_INDEX for target in row["targets"]):
                rows.append(row)
            done = end
        return rows

    def _learned(self, role: str) -> bool:
        return role == ASSISTANT or (role == USER and self.config.learn == "all")

    def collate(self, rows: Rows, pad_id: int) -> TokenBatch:
        """Padding stands at the end, where no causal model looks: no mask is needed."""
        input_ids, _ = pad([row["ids"] for row in rows], pad_id)
        targets, _ = pad([row["targets"] for row in rows], IGNORE_INDEX)
        return TokenBatch(input_ids, targets)

    # --- what the model does ---------------------------------------------------------------------

    def connect(self, tokenizer: Tokenizer) -> None:
        """Learn which ids are ratings."""
        self.frame = Frame(tokenizer)

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        hidden = model.hidden(batch.input_ids)
        rated = self._rated(batch.targets)
        words = batch.targets.masked_fill(rated, IGNORE_INDEX)
        total, _ = chunked_cross_entropy(
            hidden.view(-1, hidden.shape[-1]), model.head_weight, words.reshape(-1)
        )
        if bool(rated.any()):
            ratings, _ = chunked_cross_entropy(
                hidden[rated], model.head_weight, batch.targets[rated]
            )
            total = total + self.config.rating_weight * ratings
        extra = model.extra_loss()
        count = batch.n_targets
        return (total if extra is None else total + extra * count), count

    def _rated(self, targets: Tensor) -> Tensor:
        """[B, T]: where a rating is to be predicted."""
        if self.frame is None:
            return torch.zeros_like(targets, dtype=torch.bool)
        return (targets == self.frame.yes) | (targets == self.frame.no)

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        assert self.frame is not None
        hidden = model.hidden(batch.input_ids)
        found = []
        for state, targets in zip(hidden, batch.targets, strict=True):
            wanted = targets != IGNORE_INDEX
            logits = model.logits(state[wanted]).float()
            nats = -logits.log_softmax(-1).gather(1, targets[wanted, None]).sum()
            probability = self.frame.good(logits[-1]) if len(logits) else 0.0
            found.append((float(nats), int(wanted.sum()), probability))
        return found

    def predict(self, example: Example, outputs: Sequence[Any]) -> Heard:
        if example.attribute:
            return Heard(0.0, 0, outputs[0][2])
        return Heard(sum(nats for nats, *_ in outputs), sum(n for _, n, _ in outputs))

    # --- how it is judged ------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("perplexity", "rating_accuracy") if self.attributes else ("perplexity",)

    def given(self, example: Example) -> Any:
        return example.rating if example.attribute else None

    def found(self, prediction: Heard) -> Any:
        if prediction.probability is not None:
            return prediction.probability >= 0.5
        return prediction.nats, prediction.tokens

    def mistake(self, example: Example, prediction: Heard) -> Mistake | None:
        p = prediction.probability
        if p is None or (p >= 0.5) == example.rating:
            return None
        text = "\n".join(f"{r}: {t}" for r, t in zip(example.roles, example.texts, strict=True))
        name = example.attribute
        sure = p if not example.rating else 1 - p
        return Mistake(
            sure, text, name if example.rating else f"not {name}", f"P({name}) = {p:.1%}"
        )

    def simplest(self, examples: Sequence[Example]) -> tuple[str, list[Any]] | None:
        """Of each attribute the rating that is most frequent in training."""
        if not self.counts:
            return None
        usual = {
            name: self.counts.get(f"{name}: yes", 0) >= self.counts.get(f"{name}: no", 0)
            for name in self.attributes
        }
        return "the usual rating", [usual.get(e.attribute, False) for e in examples]

    def info(self) -> dict[str, Any]:
        return {**super().info(), "labels": list(self.attributes), "dialogue_trained": True}


def _attribute(answer: str) -> str:
    return answer.rpartition(": ")[0]


def _flat(turns: Iterable[list[int]]) -> list[int]:
    return [i for turn in turns for i in turn]


def _last(ids: list[int], most: int) -> list[int]:
    """The end of a context that is too long."""
    return ids[-most:] if len(ids) > most else ids


def _shifted(ids: list[int], learned: list[bool]) -> Row:
    """What is read, and what follows each id where that is learned."""
    targets = [i if wanted else IGNORE_INDEX for i, wanted in zip(ids, learned, strict=True)]
    return {"ids": ids[:-1], "targets": targets[1:]}
