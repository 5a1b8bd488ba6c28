"""Replies of a model that talks to any number of conversations, in order and in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from inkstone.inference.chat import Conversation
from inkstone.inference.config import SamplingConfig
from inkstone.inference.predict import Predictor
from inkstone.inference.stream import FinishReason
from inkstone.tasks.instructions import Example

GREEDY = SamplingConfig(temperature=0.0)  # the same file gives the same answers


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model says.

    Attributes:
        text: Its answer.
        finish_reason: "stop" where it came to an end, else "length".
    """

    text: str
    finish_reason: FinishReason

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Replier(Predictor[Example, Any]):
    """Reads conversations as `instructions` does, and says what comes next.

    Attributes:
        talk: The model, its tokenizer and its template.
    """

    talk: Conversation | None = None

    def __call__(self, examples: Iterable[Example]) -> Iterator[tuple[Example, Reply]]:
        """Each conversation with the answer to its last question, in the given order."""
        assert self.talk is not None
        for example in examples:
            said = self.talk.reply(self.task.prompt(example), GREEDY)
            yield example, Reply(said.text, said.finish_reason)
