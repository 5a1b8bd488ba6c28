"""The table that maps our parameter names to those of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LAYERS = {"i": "n_layers"}  # what a placeholder counts, unless a family says otherwise


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a Hugging Face folder and the parameters of ours that it holds.

    Attributes:
        theirs: Its name there; `{i}` stands for the layer.
        ours: Our parameters, stacked along their first axis where they are several.
        transposed: Whether it is stored as the transpose (GPT-2's Conv1D).
    """

    theirs: str
    ours: tuple[str, ...]
    transposed: bool = False


def expand(
    table: Sequence[Weight], config: Any, counts: Mapping[str, str] = LAYERS
) -> Iterator[Weight]:
    """The rows of a table with every placeholder replaced by each of its numbers.

    Args:
        table: `HF_NAMES` of a family.
        config: Its configuration.
        counts: Field of the configuration by placeholder: {"i": "n_layers"}.
    """
    rows = list(table)
    for letter, name in counts.items():
        rows = [numbered for row in rows for numbered in _number(row, letter, config, name)]
    yield from rows


def _number(row: Weight, letter: str, config: Any, name: str) -> Iterator[Weight]:
    place = f"{{{letter}}}"
    if place not in row.theirs:
        yield row
        return
    for i in range(getattr(config, name)):
        ours = tuple(x.replace(place, str(i)) for x in row.ours)
        yield Weight(row.theirs.replace(place, str(i)), ours, row.transposed)
