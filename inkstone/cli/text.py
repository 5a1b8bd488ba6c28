"""Text for the terminal."""

from __future__ import annotations

import math


def clock(seconds: float) -> str:
    """123.4 → "2:03"; an hour or more as h:mm:ss."""
    if not math.isfinite(seconds):
        return "–:––"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def printable(text: str) -> str:
    """Text without control characters: what a model or a file says cannot drive the terminal."""
    return "".join(
        c if c in "\n\t" or (c.isprintable() or ord(c) > 0x9F) else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )
