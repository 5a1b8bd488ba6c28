"""The Pareto front: what nothing else beats in every respect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def dominated_by(rows: Mapping[str, Sequence[float | None]]) -> dict[str, str | None]:
    """For each row the first other that is as good in everything and better in something.

    Args:
        rows: Costs of each, of one length: less is better. What is not known (None) of either of
            two is left out where they are compared.

    Returns:
        By name: None for those on the front.
    """
    return {
        name: next((other for other in rows if _beats(rows[other], costs)), None)
        for name, costs in rows.items()
    }


def _beats(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
