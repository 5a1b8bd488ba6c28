"""The alphabet of byte-level tokenizers."""

from __future__ import annotations


def byte_characters() -> dict[int, str]:
    """GPT-2's printable character for every byte (Radford et al. 2019, released code)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    others = (b for b in range(256) if b not in table)
    return table | {b: chr(256 + n) for n, b in enumerate(others)}
