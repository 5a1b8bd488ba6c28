"""A dialogue that remembers its turns, forgets the oldest when the context is full, and says so."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.generate import Generator
from inkstone.inference.stream import Chunk, Generation
from inkstone.tokenizers.chat import check_messages

Message = dict[str, str]

MAX_KEPT = 1000  # messages that are looked at; more never fit the contexts of today
ROOM_SHARE = 4  # one part in this many of the context is kept free for the answer, at most
SPEAKERS = {"user": "User", "assistant": "Assistant"}
TRANSCRIPT_STOPS = ("\nUser:", "\nAssistant:")

NEVER_TAUGHT = (
    "This model was trained on plain text and never taught dialogue: it continues a transcript "
    "of User and Assistant as it would continue any text, and may ignore what you say.\n"
    '  → for answers, use a model that was fine-tuned on conversations ("messages" data); '
    "to continue a text of yours, use `inkstone generate`"
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A conversation as the model reads it.

    Attributes:
        ids: Its tokens.
        config: How to answer.
        end_ids: Tokens that end the answer.
        dropped: Messages at the front that do not fit the context.
        adapter: What an engine is to answer with; None for the model as it is.
    """

    ids: list[int]
    config: SamplingConfig
    end_ids: frozenset[int]
    dropped: int = 0
    adapter: str | None = None


class Conversation:
    """Turns of a person and a model.

    A model that was taught dialogue gets its chat template. Any other gets a plain transcript that
    it continues, and `warning` says so. Whole turns are dropped from the front when the
    conversation no longer fits the context; the system message always stays.

    Args:
        generator: The model and its tokenizer.
        info: The contents of its `inkstone.json`; "dialogue_trained" says what it was taught.
        system: Instructions ahead of the talk.

    Attributes:
        messages: All that was said, also what no longer fits the context.
        warning: What a person should know before talking; None when all is well.
        dropped: Messages at the front that the last answer no longer took into account.
        last: The last answer with its tokens; None before the first.
    """

    def __init__(
        self, generator: Generator, info: Mapping[str, Any], *, system: str | None = None
    ) -> None:
        if generator.tokenizer is None:
            raise UsageError("chat needs a tokenizer", fix="use a folder that holds tokenizer.json")
        self.generator = generator
        self.tokenizer = generator.tokenizer
        self.messages: list[Message] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        # a folder of someone else's says by its template alone what the model was taught
        taught = info.get("dialogue_trained", "inkstone" not in info)
        self.dialogue = bool(taught) and self.tokenizer.chat_template is not None
        self.warning = None if self.dialogue else NEVER_TAUGHT
        self.dropped = 0
        self.last: Generation | None = None

    def say(self, text: str, **sampling: Any) -> Iterator[str]:
        """Say something and get the answer in pieces; both become part of the conversation.

        Args:
            text: What the person says.
            sampling: Fields of `SamplingConfig`.

        Raises:
            UsageError: A setting is out of range, or the message alone does not fit the context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        chunks = self._answer(messages, SamplingConfig(**sampling))
        self.messages = messages
        return self._remembered(chunks)

    def reply(
        self, messages: Sequence[Mapping[str, str]], config: SamplingConfig | None = None
    ) -> Generation:
        """The answer to a list of {"role", "content"} messages; the conversation is not touched.

        Raises:
            UsageError: As for `say`.
            TokenizerError: A message is malformed.
        """
        answer = Generation("", [], "stop")
        for chunk in self._answer([dict(m) for m in messages], config or SamplingConfig()):
            _add(answer, chunk)
        return answer

    def _remembered(self, chunks: Iterator[Chunk]) -> Iterator[str]:
        answer = Generation("", [], "length")  # what it is if the listener leaves early
        try:
            for chunk in chunks:
                piece = _add(answer, chunk)
                if piece:
                    yield piece
        finally:
            self.last = answer
            self.messages.append({"role": "assistant", "content": answer.text.rstrip()})

    def ask(self, messages: Sequence[Mapping[str, str]], config: SamplingConfig) -> Asked:
        """What a model has to continue to answer some messages; nothing is remembered.

        Raises:
            UsageError: The last message alone does not fit the context.
            TokenizerError: A message is malformed.
        """
        ids, dropped = self._fitting([dict(m) for m in messages], config)
        if self.dialogue:
            return Asked(ids, config, frozenset(self._end_ids()), dropped)
        stops = tuple(dict.fromkeys((*config.stop, *TRANSCRIPT_STOPS)))
        config = config.model_copy(update={"stop": stops})
        return Asked(ids, config, self.generator.end_ids, dropped)

    def _answer(self, messages: list[Message], config: SamplingConfig) -> Iterator[Chunk]:
        asked = self.ask(messages, config)
        self.dropped = asked.dropped
        return self.generator.stream(asked.ids, asked.config, end_ids=asked.end_ids)

    def _fitting(self, messages: list[Message], config: SamplingConfig) -> tuple[list[int], int]:
        """Ids of the conversation, and how many of its first messages had to be left out."""
        check_messages([*messages[:1], *messages[1:][-MAX_KEPT:]])
        context = self.generator.max_seq_len
        room = context - min(config.max_tokens, context // ROOM_SHARE)
        head = [m for m in messages[:1] if m["role"] == "system"]
        # what is kept starts with something that the person said
        starts = [i for i, m in enumerate(messages) if i > len(head) and m["role"] == "user"]
        if len(messages) <= MAX_KEPT:
            starts.insert(0, len(head))
        starts = [i for i in starts if i >= len(messages) - MAX_KEPT] or [len(head)]

        def fits(start: int) -> bool:
            return len(self._ids([*head, *messages[start:]])) <= room

        start = starts[bisect.bisect_left(starts[:-1], True, key=fits)]
        return self._ids([*head, *messages[start:]]), start - len(head)

    def _ids(self, messages: list[Message]) -> list[int]:
        if self.dialogue:
            return self.tokenizer.chat_ids(messages)
        return self.generator.encode(_transcript(messages))

    def _end_ids(self) -> set[int]:
        """End-of-text, and whatever token the template closes an answer with."""
        exchange = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}]
        ids = self.tokenizer.chat_ids(exchange, add_generation_prompt=False)
        special = [i for i in ids if i in self.tokenizer.special_ids]
        return {*special[-1:], *self.generator.end_ids}


def _transcript(messages: Sequence[Message]) -> str:
    """The conversation as a play would print it, ending where the assistant speaks."""
    lines = []
    for message in messages:
        speaker = SPEAKERS.get(message["role"])
        content = message["content"].strip()
        lines.append(f"{content}\n" if speaker is None else f"{speaker}: {content}")
    return "\n".join([*lines, "Assistant:"])


def _add(answer: Generation, chunk: Chunk) -> str:
    """Append a chunk to an answer; its text, without the space that follows "Assistant:"."""
    piece = chunk.text if answer.text else chunk.text.lstrip()
    answer.text += piece
    answer.ids += chunk.ids
    answer.logprobs += chunk.logprobs
    answer.finish_reason = chunk.finish_reason or answer.finish_reason
    return piece
