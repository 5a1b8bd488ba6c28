"""Direct preference optimisation: of two answers to a prompt, the one that people chose gains.

Rafailov et al. 2023 ("Direct Preference Optimization: Your Language Model is Secretly a Reward
Model", equation 7):

    −log σ(β · ((log π(chosen) − log ρ(chosen)) − (log π(rejected) − log ρ(rejected))))

summed over pairs, where π is the model, ρ the reference that training begins with, and log π of an
answer is the sum over its tokens and its end. The reference does not change, so its numbers are
computed once, before the first step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from inkstone.config import Section
from inkstone.nn.loss import IGNORE_INDEX, chunked_cross_entropy
from inkstone.tasks import _base
from inkstone.tasks._base import Mistake, Row, Rows
from inkstone.tasks._batch import TokenBatch, pad
from inkstone.tasks._codec import Codec
from inkstone.tasks._conversations import FIELDS, Taught, messages_of, shifted
from inkstone.tasks._turns import ASSISTANT, USER
from inkstone.tasks._two_answers import ANSWERS, pair_in
from inkstone.text.normalize import normalize
from inkstone.text.table import Record
from inkstone.tokenizers.tokenizer import Tokenizer


class Config(Section):
    """Settings of preference optimisation.

    Attributes:
        messages_field: Field of what was said before; None recognises it: messages or
            conversations, a prompt, or Alpaca's instruction and input.
        chosen_field: The better answer: a text, a message, or messages.
        rejected_field: The other.
        beta: β: how much a step away from the reference costs; small allows more.
    """

    messages_field: str | None = Field(default=None, min_length=1)
    chosen_field: str = Field(default="chosen", min_length=1)
    rejected_field: str = Field(default="rejected", min_length=1)
    beta: float = Field(default=0.1, gt=0, le=100)


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and two answers.

    Attributes:
        roles: Who speaks before the answer, turn by turn.
        texts: What is said.
        chosen: The better answer; "" for a plain text.
        rejected: The other.
    """

    roles: tuple[str, ...]
    texts: tuple[str, ...]
    chosen: str = ""
    rejected: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model makes of a pair.

    Attributes:
        chosen: log π of the chosen answer, in nats.
        rejected: Likewise.
        margin: β times how much more the chosen one gained over the reference; None without one.
    """

    chosen: float
    rejected: float
    margin: float | None = None

    def __str__(self) -> str:
        gained = "" if self.margin is None else f", margin {self.margin:+.3f}"
        return f"chosen {self.chosen:.2f}, rejected {self.rejected:.2f} nats{gained}"

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"chosen": self.chosen, "rejected": self.rejected, "margin": self.margin}


@dataclass(frozen=True)
class PairBatch(TokenBatch):
    """Pairs side by side; `input_ids` and `targets` are of the chosen answers.

    Attributes:
        rejected_ids: [B, S] int64.
        rejected_targets: [B, S] int64.
        reference: [B, 2] log ρ of both answers; None where no reference is known.
    """

    rejected_ids: Tensor | None = None
    rejected_targets: Tensor | None = None
    reference: Tensor | None = None

    @property
    def n_targets(self) -> int:
        """Pairs."""
        return len(self)


class Task(_base.Task[Example, Judged]):
    """Pairs of answers.

    Attributes:
        reference: log ρ of both answers by pair; empty where no reference is known.
    """

    NAME = "preferences"
    EPOCHS = (3, 3)
    RATE = 0.2  # both answers could be lost (Rafailov et al. 2023, appendix B: 1e-6)
    UNIT = "pair"
    HEADS: ClassVar = {"causal": ""}
    FIELDS = ("chosen_field", "rejected_field")
    LENGTHS = ("ids", "rejected_ids")
    TALKS = True
    REFERS = True
    config: Config

    def __init__(self, config: Any, labels: Sequence[str] = (), **more: Any) -> None:
        super().__init__(config, labels, **more)
        self.reference: dict[bytes, tuple[float, float]] = {}

    # --- what an example looks like --------------------------------------------------------------

    def read(self, record: Record, *, labelled: bool = True) -> Example:
        answers = self.need(record, "chosen_field"), self.need(record, "rejected_field")
        return Example(*pair_in(record, answers, self.config.messages_field))

    def example(self, text: str) -> Example:
        return Example((USER,), (normalize(text),))

    def texts(self, example: Example) -> Iterable[str]:
        return (*example.texts, example.chosen, example.rejected)

    def together(self, example: Example) -> Iterable[str]:
        """All pairs of one prompt are held out, or none."""
        return example.texts

    def prompt(self, example: Example) -> list[dict[str, str]]:
        return messages_of(example.roles, example.texts)

    @property
    def wanted(self) -> list[str]:
        return [*super().wanted, *FIELDS]

    # --- how it becomes a batch ------------------------------------------------------------------

    def adapt(self, tokenizer: Tokenizer) -> Tokenizer:
        return tokenizer.for_chat()

    def seen(self, example: Example, tokenizer: Tokenizer, most: int) -> list[tuple[str, Taught]]:
        """Both conversations as the model sees them; of each, the last answer counts."""
        found, chat = [], tokenizer.chat_format
        for name, answer in zip(ANSWERS, (example.chosen, example.rejected), strict=True):
            turns = (*example.roles, ASSISTANT), (*example.texts, answer)
            whole = chat.teach(messages_of(*turns))
            learned = [False] * len(whole.ids)
            for start, end in whole.answers[-1:] if answer else ():
                learned[start:end] = [True] * (end - start)
            cut = max(0, len(whole.ids) - most)
            found.append((name, Taught(whole.ids[:most], learned[:most], cut)))
        return found

    def encode(self, examples: Sequence[Example], codec: Codec) -> list[list[Row]]:
        """A row a pair; none where an answer lies behind the end of the row."""
        rows = []
        for example in examples:
            both = [row for _, row in self.seen(example, codec.tokenizer, codec.max_length)]
            if all(any(row.learned[1:]) for row in both):
                one, other = map(shifted, both)
                rows.append([
                    {"ids": one["ids"], "targets": one["targets"], "rejected_ids": other["ids"],
                     "rejected_targets": other["targets"]}
                ])  # fmt: skip
            else:
                rows.append([])
        return rows

    def collate(self, rows: Rows, pad_id: int) -> PairBatch:
        known = [self.reference.get(_key(row)) for row in rows]
        return PairBatch(
            pad([row["ids"] for row in rows], pad_id)[0],
            pad([row["targets"] for row in rows], IGNORE_INDEX)[0],
            rejected_ids=pad([row["rejected_ids"] for row in rows], pad_id)[0],
            rejected_targets=pad([row["rejected_targets"] for row in rows], IGNORE_INDEX)[0],
            reference=None if None in known else torch.tensor(known, dtype=torch.float32),
        )

    # --- what the model does ---------------------------------------------------------------------

    def refer(self, model: Any, rows: Rows, pad_id: int) -> None:
        """Keep what the reference gives some pairs: ahead of training, without gradients."""
        batch = self.collate(rows, pad_id).to(model.device)
        found = _log_probabilities(model, batch).tolist()
        self.reference.update({_key(r): (a, b) for r, (a, b) in zip(rows, found, strict=True)})

    def loss(self, model: Any, batch: TokenBatch) -> tuple[Tensor, int]:
        """Where no reference is known yet (a step is timed), the model is its own."""
        assert isinstance(batch, PairBatch)
        found = _log_probabilities(model, batch)
        reference = found.detach() if batch.reference is None else batch.reference
        return -F.logsigmoid(self._margins(found, reference)).sum(), len(batch)

    def _margins(self, found: Tensor, reference: Tensor) -> Tensor:
        """[B, 2] and [B, 2] → [B]: β times the gain of the chosen answer over the other's."""
        gained = found - reference
        return self.config.beta * (gained[:, 0] - gained[:, 1])

    def outputs(self, model: Any, batch: TokenBatch, rows: Rows) -> list[Any]:
        assert isinstance(batch, PairBatch)
        found, reference = _log_probabilities(model, batch), batch.reference
        judged = [Judged(chosen, rejected) for chosen, rejected in found.tolist()]
        if reference is None:
            return judged
        margins = self._margins(found, reference).tolist()
        return [replace(pair, margin=margin) for pair, margin in zip(judged, margins, strict=True)]

    def predict(self, example: Example, outputs: Sequence[Any]) -> Judged:
        if not outputs:
            return Judged(float("nan"), float("nan"))
        judged: Judged = outputs[0]
        return judged

    # --- how it is judged ------------------------------------------------------------------------

    @property
    def metrics(self) -> tuple[str, ...]:
        always = ("chosen_likelier",)
        return ("preference_accuracy", "margin", *always) if self.reference else always

    def given(self, example: Example) -> Any:
        return None

    def found(self, prediction: Judged) -> Any:
        return prediction

    def mistake(self, example: Example, prediction: Judged) -> Mistake | None:
        """A pair whose rejected answer gained more."""
        margin = prediction.margin
        if margin is None or margin >= 0:
            return None
        return Mistake(-margin, example.texts[-1], example.chosen, example.rejected)

    def info(self) -> dict[str, Any]:
        return {**super().info(), "dialogue_trained": True}


def _log_probabilities(model: Any, batch: PairBatch) -> Tensor:
    """[B, 2]: log π of the chosen answers and of the rejected ones, fp32."""
    assert batch.rejected_ids is not None and batch.rejected_targets is not None
    sides = ((batch.input_ids, batch.targets), (batch.rejected_ids, batch.rejected_targets))
    columns = []
    for ids, targets in sides:
        hidden = model.hidden(ids)
        rows = zip(hidden, targets, strict=True)
        columns.append(
            torch.stack([-chunked_cross_entropy(h, model.head_weight, t)[0] for h, t in rows])
        )
    return torch.stack(columns, dim=1)


def _key(row: Any) -> bytes:
    """What a pair is known by: its ids."""
    digest = hashlib.blake2b(digest_size=16)
    for name in ("ids", "targets", "rejected_ids", "rejected_targets"):
        ids = np.asarray(row[name], np.int32)
        digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
    return digest.digest()
