"""How to choose the next token, and when to end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from inkstone import registry
from inkstone.config import Section
from inkstone.errors import UsageError

MAX_STOPS = 16
MAX_BIASES = 1024
MAX_CHOICES = 1024
MAX_FORM_CHARS = 1 << 16
MAX_STOP_CHARS = 1000


class SamplingConfig(Section):
    """Settings of one request.

    Attributes:
        max_tokens: New tokens at most.
        temperature: Scores are divided by it; 0 always takes the likeliest token.
        top_k: Sample from the k likeliest tokens only; None for all.
        top_p: Sample from the likeliest tokens that together reach this probability
            (Holtzman et al. 2020, equation 2); 1 for all.
        min_p: Drop tokens less likely than this share of the likeliest (Nguyen et al. 2024); 0
            drops none.
        repetition_penalty: Scores of tokens that the prompt or the answer holds already are divided
            by it if positive and multiplied if negative (Keskar et al. 2019, section 4.1); 1 for
            none.
        presence_penalty: Taken from the score of every token that the answer holds already.
        frequency_penalty: Taken from it once for every time that the answer holds it.
        logit_bias: Added to the scores of some tokens, by id; ±100 forces or forbids.
        json_schema: The answer is JSON that fits this schema; {} for any JSON object.
        regex: The answer fits this regular expression, from its beginning to its end.
        choice: The answer is one of these texts. Of the three at most one is given.
        stop: The answer ends before the first of these texts, wherever token borders fall.
        seed: Prompt i of a batch draws from a generator of its own, seeded with seed + i, so its
            answer does not depend on its neighbours; None draws a fresh seed.
        logprobs: Give the log-probability of each token, as the model itself sees it (before
            penalty, temperature and filters).
        top_logprobs: Give those of this many likeliest alternatives, too.
    """

    # strict: "0.5" and True are no numbers
    model_config = ConfigDict(strict=True)

    max_tokens: int = Field(default=256, ge=1, le=1 << 24)
    temperature: float = Field(default=0.8, ge=0.0, le=100.0)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(default=1.0, ge=0.01, le=100.0)
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    logit_bias: Mapping[int, Annotated[float, Field(ge=-100, le=100)]] = Field(
        default={}, max_length=MAX_BIASES
    )
    json_schema: Mapping[str, Any] | None = None
    regex: str | None = Field(default=None, max_length=MAX_FORM_CHARS)
    choice: tuple[str, ...] = Field(default=(), max_length=MAX_CHOICES)
    stop: tuple[str, ...] = Field(default=(), max_length=MAX_STOPS)
    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=100)

    def __init__(self, **values: Any) -> None:
        """Check the settings.

        Raises:
            UsageError: An unknown setting, or a value out of range; names the field.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else "settings"
            if first["type"] == "extra_forbidden":
                raise UsageError(
                    f"unknown sampling setting {field!r}",
                    fix=registry.did_you_mean(field, type(self).model_fields),
                ) from error
            given = repr(first["input"])
            given = given if len(given) <= 80 else given[:80] + "…"
            raise UsageError(
                f"sampling setting {field} = {given}: {first['msg']}",
                fix="`inkstone generate --help` lists the settings and their ranges",
            ) from error

    @field_validator("choice", mode="before")
    @classmethod
    def _choices(cls, value: Any) -> Any:
        texts = tuple(value) if isinstance(value, list) else value
        if isinstance(texts, tuple) and any(isinstance(t, str) and not t for t in texts):
            raise ValueError("a choice has at least one character")
        return texts

    @model_validator(mode="after")
    def _one_form(self) -> SamplingConfig:
        if (self.json_schema is not None) + (self.regex is not None) + bool(self.choice) > 1:
            raise ValueError("give one of json_schema, regex and choice")
        return self

    @property
    def constrained(self) -> bool:
        """Whether the answer has to fit a form."""
        return self.json_schema is not None or self.regex is not None or bool(self.choice)

    @field_validator("stop", mode="before")
    @classmethod
    def _stop_texts(cls, value: Any) -> Any:
        texts = (value,) if isinstance(value, str) else value
        texts = tuple(texts) if isinstance(texts, list) else texts
        if isinstance(texts, tuple) and any(
            isinstance(t, str) and not 0 < len(t) <= MAX_STOP_CHARS for t in texts
        ):
            raise ValueError(f"a stop text has 1 to {MAX_STOP_CHARS} characters")
        return texts

    def but(self, **changes: Any) -> SamplingConfig:
        """A copy with some settings changed, checked like new ones.

        Raises:
            UsageError: As for a new one.
        """
        return SamplingConfig(**(dict(self) | changes))

    @property
    def greedy(self) -> bool:
        """Whether no chance is involved."""
        return self.temperature == 0.0
