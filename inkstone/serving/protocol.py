"""What may be asked, as OpenAI's interface names it, and the shapes of the answers.

A field that is known but cannot be done here (tools, images) is refused by name rather than passed
over; a few that change nothing (`user`, `metadata`) are accepted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from inkstone.inference.config import MAX_CHOICES, MAX_FORM_CHARS, SamplingConfig
from inkstone.inference.sampling import TokenScore

MOST_CHOICES = 16
MOST_INPUTS = 2048
MOST_MESSAGES = 10_000
MOST_IDS = 1 << 17  # tokens of a request to `/detokenize`
MAX_CHARS = 1 << 24
MOST_EXPLAINED = 20_000  # characters of a text that is read once a word, or looked into

Text = Annotated[str, StringConstraints(max_length=MAX_CHARS)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Probability = Annotated[float, Field(ge=0, le=1)]
T = TypeVar("T")
# the first thing that is wrong is told: a list of what is wrong with each of many costs seconds
Several = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """The object that a request sends."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    """How to stream: whether the last event tells what was used."""

    include_usage: bool = False
    include_obfuscation: bool = False


class JsonSchema(Body):
    """The schema that an answer has to fit."""

    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] = Field(default={}, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """What an answer has to be."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None


class Sampled(Body):
    """What chat and completions have in common."""

    model: str | None = None
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    min_p: Probability = 0.0
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    stop: Text | Several[Text] | None = Field(default=None)
    response_format: ResponseFormat | None = None
    regex: str | None = Field(default=None, max_length=MAX_FORM_CHARS)
    choice: Several[str] | None = Field(default=None, min_length=1, max_length=MAX_CHOICES)
    n: int = Field(default=1, ge=1, le=MOST_CHOICES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    def sampling(self, max_tokens: int, logprobs: int | None) -> list[SamplingConfig]:
        """The settings of each of the `n` answers; seeds count up.

        Raises:
            UsageError: A value is out of range; names the field.
        """
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        bias = {token_id(key): float(value) for key, value in (self.logit_bias or {}).items()}
        shared: dict[str, Any] = {
            "max_tokens": max_tokens, "temperature": float(self.temperature),
            "top_p": float(self.top_p), "top_k": self.top_k, "min_p": float(self.min_p),
            "repetition_penalty": float(self.repetition_penalty),
            "presence_penalty": float(self.presence_penalty),
            "frequency_penalty": float(self.frequency_penalty), "logit_bias": bias,
            "stop": tuple(s for s in stops if s), "logprobs": logprobs is not None,
            "top_logprobs": logprobs or 0, "regex": self.regex,
            "choice": tuple(self.choice or ()), "json_schema": self.schema_wanted,
        }  # fmt: skip
        return [
            SamplingConfig(
                **shared, seed=None if self.seed is None else (self.seed + i) % (1 << 63)
            )
            for i in range(self.n)
        ]

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that the answer has to fit, if any."""
        form = self.response_format
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return {"type": "object"}
        return {} if form.json_schema is None else form.json_schema.schema_


class Completions(Sampled):
    """`POST /v1/completions`."""

    prompt: Text | Several[Text] | Several[Id] | Several[Several[Id]] = ""
    max_tokens: int = Field(default=16, ge=0, le=1 << 24)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES)
    suffix: Text | None = None


class TextPart(Body):
    """A part of a message; only text is read."""

    type: Literal["text"]
    text: Text


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Several[TextPart] | None = None
    name: str | None = None
    refusal: str | None = None

    def plain(self) -> dict[str, str]:
        """As a template reads it."""
        content = self.content or ""
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatCompletions(Sampled):
    """`POST /v1/chat/completions`."""

    messages: Several[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(default=None, ge=1, le=1 << 24)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1 << 24)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0, le=20)


class InputText(Body):
    """A part of a message to `/v1/responses`; only text is read."""

    type: Literal["input_text", "output_text"]
    text: Text
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None


class InputMessage(Body):
    """One turn that `/v1/responses` is given."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Several[InputText]
    id: str | None = None
    status: str | None = None
    phase: str | None = None

    def plain(self) -> dict[str, str]:
        """As a template reads it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class Responses(Body):
    """`POST /v1/responses`; nothing is stored, so every request brings the whole talk."""

    model: str | None = None
    input: Text | Several[InputMessage]
    instructions: Text | None = None
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 24)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    stream: bool = False
    store: bool | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The talk as a template reads it."""
        told = [] if self.instructions is None else [("system", self.instructions)]
        if isinstance(self.input, str):
            told.append(("user", self.input))
        first = [{"role": role, "content": text} for role, text in told]
        rest = [] if isinstance(self.input, str) else [one.plain() for one in self.input]
        return first + rest


class Embeddings(Body):
    """`POST /v1/embeddings`."""

    input: Text | Several[Text] = Field(...)
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, le=1 << 16)
    user: str | None = None


class Texts(Body):
    """`/v1/classify`, `/v1/tag`, `/v1/translate`, `/v1/summarize`."""

    input: Text | Several[Text]
    model: str | None = None

    @property
    def several(self) -> list[str]:
        """The inputs as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class Attribute(Body):
    """`POST /v1/attribute`: which words a label is due to; the model's own where none is named."""

    input: str = Field(max_length=MOST_EXPLAINED)
    label: str | None = Field(default=None, max_length=MOST_EXPLAINED)
    model: str | None = None


class Attend(Body):
    """`POST /v1/attention`: who looks at whom in one layer."""

    input: str = Field(max_length=MOST_EXPLAINED)
    layer: int = Field(default=0, ge=0, lt=1 << 31)
    model: str | None = None


class Attributed(Body):
    """A word and what it says for the label (above 0) or against it, in nats of log-odds."""

    text: str
    start: int
    end: int
    weight: float


class Attribution(Body):
    """The answer of `/v1/attribute`; `start` and `end` count characters of `text`."""

    model: str
    text: str
    label: str
    score: Probability
    words: list[Attributed]


class Attention(Body):
    """The answer of `/v1/attention`.

    Attributes:
        rows: Texts of the T tokens that look.
        columns: Texts of the S tokens that are looked at.
        layers: How many there are.
        weights: Of the layer: heads, T rows, S columns; a row sums to 1, but for rounding.
        cut: Whether only the beginning of the text was read.
    """

    model: str
    rows: list[str]
    columns: list[str]
    layers: int
    layer: int
    weights: list[list[list[float]]]
    cut: bool


class Run(Body):
    """One entry of `/v1/runs`; what its log does not tell is null.

    Attributes:
        in_training: Its log was written to within the last minutes, and its last step is to come.
        quiet_s: Since its log was written to.
        loss: Of training, in nats a token.
    """

    id: str
    object: Literal["run"] = "run"
    in_training: bool
    quiet_s: float
    step: int | None = None
    max_steps: int | None = None
    loss: float | None = None
    tokens: int | None = None
    tokens_per_s: float | None = None
    epoch: float | None = None
    elapsed_s: float | None = None
    remaining_s: float | None = None


class Runs(Body):
    """The answer of `/v1/runs`: the newest first."""

    object: Literal["list"] = "list"
    watching: bool
    data: list[Run]


class RunCurves(Run):
    """The answer of `/v1/runs/{name}`: pairs of a step and a value, thinned to some hundreds.

    Attributes:
        losses: Of training; neighbors are averaged.
        scores: Of evaluations, by name: `nats_per_token` is the loss on held-out text.
    """

    losses: list[tuple[int, float]]
    scores: dict[str, list[tuple[int, float]]]


class Question(Body):
    """`POST /v1/answer`."""

    question: Text
    context: Text
    model: str | None = None


class Tokenize(Body):
    """`POST /tokenize`."""

    text: Text
    model: str | None = None


class Detokenize(Body):
    """`POST /detokenize`."""

    ids: Several[Id] = Field(max_length=MOST_IDS)
    model: str | None = None


def token_id(key: str) -> int:
    """The id that a key of `logit_bias` names; −1 where it names none."""
    return int(key) if key.isascii() and key.isdigit() and len(key) < 10 else -1


def new_id(kind: str) -> str:
    """A name for an answer."""
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """What a request has cost."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def chat_logprobs(scores: Sequence[TokenScore], text: Any) -> dict[str, Any]:
    """`logprobs` of a chat answer; `text` gives the bytes of a token."""

    def one(token: int, logprob: float) -> dict[str, Any]:
        raw = text(token)
        shown = raw.decode("utf-8", "replace")
        return {"token": shown, "logprob": logprob, "bytes": list(raw)}

    return {
        "content": [
            one(s.id, s.logprob) | {"top_logprobs": [one(i, p) for i, p in s.top]} for s in scores
        ],
        "refusal": None,
    }


def completion_logprobs(
    scores: Sequence[tuple[str, float | None, dict[str, float] | None]], start: int
) -> dict[str, Any]:
    """`logprobs` of a completion: of each token its text, score and alternatives.

    Args:
        scores: In order.
        start: Where the first one begins in the text.
    """
    offsets, place = [], start
    for token, _, _ in scores:
        offsets.append(place)
        place += len(token)
    return {
        "tokens": [token for token, _, _ in scores],
        "token_logprobs": [logprob for _, logprob, _ in scores],
        "top_logprobs": [top for _, _, top in scores],
        "text_offset": offsets,
    }
