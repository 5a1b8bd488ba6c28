"""Stop texts that are found wherever token borders fall."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Passes text on, except what might still become a stop text; that is held back until sure.

    Args:
        stops: Texts that end the answer; none of them is ever passed on.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stops)
        self.stopped = False
        self._held = ""
        self._longest = max(map(len, self.stops), default=1)

    def push(self, text: str) -> str:
        """Take new text and give what is certainly part of the answer.

        Once a stop text has appeared, `stopped` is True and nothing more is given. Of several, the
        one that begins first counts.
        """
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        text = self._held + text
        found = [place for place in map(text.find, self.stops) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = self._undecided(text)
        self._held = text[keep:]
        return text[:keep]

    def flush(self) -> str:
        """The end came first: what was held back belongs to the answer."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Where the longest ending that begins a stop text starts; the length if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            ending = text[start:]
            if any(stop.startswith(ending) for stop in self.stops):
                return start
        return len(text)
