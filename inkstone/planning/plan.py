"""What planning knows and what it decides: corpus facts, choices with reasons, a plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class CorpusFacts:
    """What is known of the text before training.

    Attributes:
        train_bytes: UTF-8 bytes of the training documents.
        train_documents: How many there are.
        characters: Distinct characters that are frequent in it.
        train_tokens: Tokens after tokenization; 0 before.
        valid_tokens: Held-out tokens; 0 before.
        vocab_size: Of the tokenizer; 0 before.
    """

    train_bytes: int
    train_documents: int
    characters: int = 0
    train_tokens: int = 0
    valid_tokens: int = 0
    vocab_size: int = 0


@dataclass(frozen=True)
class Choice:
    """One resolved setting. `chosen` is False when the recipe gave it."""

    key: str
    value: Any
    reason: str
    chosen: bool = True

    def __str__(self) -> str:
        return f"{self.key} = {show(self.value)}: {self.reason}"


@dataclass(frozen=True)
class Shape:
    """A candidate: the settings of the family's `Config`, and what it costs."""

    config: dict[str, Any]
    parameters: int
    step_flops: float


@dataclass
class Plan:
    """All choices of one moment, and what they promise."""

    choices: list[Choice] = field(default_factory=list)
    predicted: dict[str, float] = field(default_factory=dict)

    def values(self) -> dict[str, dict[str, Any]]:
        """Chosen settings by section, as `Recipe.with_values` takes them."""
        result: dict[str, dict[str, Any]] = {}
        for choice in self.choices:
            if choice.chosen:
                section, _, key = choice.key.partition(".")
                result.setdefault(section, {})[key] = choice.value
        return result


def count(value: float) -> str:
    """12_345_678 → "12.3 million"."""
    for scale, unit in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f}"


def size_text(value: float) -> str:
    """A number of bytes, for people: "3.1 MB"."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} bytes"


def show(value: Any) -> str:
    """A setting's value, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and value >= 10_000:
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
