"""The table that maps our parameter names to those of a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


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


def expand(table: Sequence[Weight], n_layers: int) -> Iterator[Weight]:
    """The rows of a table with `{i}` replaced by every layer's number."""
    for row in table:
        if "{i}" not in row.theirs:
            yield row
            continue
        for i in range(n_layers):
            names = tuple(name.replace("{i}", str(i)) for name in row.ours)
            yield Weight(row.theirs.replace("{i}", str(i)), names, row.transposed)
