"""Write what stands between two texts, with a decoder that learned to (Bavarian et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inkstone.errors import UsageError
from inkstone.inference.config import SamplingConfig
from inkstone.inference.fill import Filled
from inkstone.inference.generate import Generator
from inkstone.inference.stream import FinishReason
from inkstone.tasks.fill_in_the_middle import MIDDLE, Marks
from inkstone.tokenizers.tokenizer import Tokenizer

BLANKS = " \t"
SAMPLE = SamplingConfig(max_tokens=48, temperature=0.0)  # for the examples of a report


@dataclass(frozen=True, slots=True)
class Infill:
    """What was written between two texts.

    Attributes:
        prefix: What stands before it.
        text: What was written.
        suffix: What stands behind it.
        finish_reason: "stop" where the model came to the end, else "length".
    """

    prefix: str
    text: str
    suffix: str
    finish_reason: FinishReason

    def __str__(self) -> str:
        return self.prefix + self.text + self.suffix

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self) | {"filled": str(self)}


def fill_between(
    generator: Generator,
    pairs: Sequence[tuple[str, str]],
    config: SamplingConfig,
    *,
    suffix_first: bool = True,
) -> list[Infill]:
    """The middle of each (prefix, suffix).

    What does not fit into the context is left out where it is farthest from the middle; the answer
    may take half of the context at most. Blanks at the end of a prefix, as where a cursor stands in
    an indented line, are written again by the model and taken off: in all that it has read, the
    last blank is a part of the word behind it.

    Args:
        generator: The model and its tokenizer.
        pairs: What stands before, and what behind.
        config: How to write.
        suffix_first: Ask in the order SPM, in which the answer follows the prefix without a seam;
            a small model finds that easier. PSM else, which is all that some models know.

    Raises:
        UsageError: The model was not trained for it, or has no tokenizer.
    """
    config = config.but(max_tokens=min(config.max_tokens, generator.max_seq_len // 2))
    prompts = [
        prompt_between(generator, *pair, config.max_tokens, suffix_first=suffix_first)
        for pair in pairs
    ]
    found = generator.generate(prompts, config)
    return [
        Infill(prefix, _behind(prefix, answer.text), suffix, answer.finish_reason)
        for (prefix, suffix), answer in zip(pairs, found, strict=True)
    ]


def prompt_between(
    generator: Generator, prefix: str, suffix: str, max_tokens: int, *, suffix_first: bool
) -> list[int]:
    """The tokens behind which a model writes the middle.

    Args:
        generator, prefix, suffix, suffix_first: As in `fill_between`.
        max_tokens: Room that is kept for the answer, half of the context at most.

    Raises:
        UsageError: The model was not trained for it, or has no tokenizer.
    """
    tokenizer = generator.tokenizer
    if tokenizer is None:
        raise UsageError("this model has no tokenizer, so a prompt cannot be text")
    marks = Marks(tokenizer)
    order = marks.spm if suffix_first else marks.psm
    room = generator.max_seq_len - max_tokens - 4  # begin-of-text and three marks
    before, after = tokenizer.encode(prefix.rstrip(BLANKS)), tokenizer.encode(suffix)
    after = after[: max(room - len(before), room // 2)]
    before = before[max(0, len(before) - (room - len(after))) :]
    return [*generator.encode(""), *order(before, after)]


def _behind(prefix: str, written: str) -> str:
    """Without the blanks that stand at the end of the prefix already."""
    return written.lstrip(BLANKS) if prefix.endswith(tuple(BLANKS)) else written


def fill_marked(
    model: Any, tokenizer: Tokenizer, texts: Sequence[str], *, suffix_first: bool = True
) -> list[Filled]:
    """Greedily what belongs where each text has <|fim_middle|>, or behind it without one."""
    halves = [text.partition(MIDDLE) for text in texts]
    pairs = [(before, after) for before, _, after in halves]
    generator = Generator(model, tokenizer)
    found = fill_between(generator, pairs, SAMPLE, suffix_first=suffix_first)
    return [Filled(str(x)) for x in found]
