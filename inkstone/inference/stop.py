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
        one that begins first counts, so the answer does not depend on how the text was cut.
        """
        if self.stopped or not self.stops:
            return "" if self.stopped else text
        return self._pass_on(self._held + text, final=False)

    def flush(self) -> str:
        """The end came first: what was held back belongs to the answer."""
        return "" if self.stopped else self._pass_on(self._held, final=True)

    def _pass_on(self, text: str, *, final: bool) -> str:
        found = min((p for p in map(text.find, self.stops) if p >= 0), default=len(text))
        keep = len(text) if final else self._undecided(text)
        if found < len(text) and found <= keep:
            self.stopped, self._held = True, ""
            return text[:found]
        self._held = text[keep:]
        return text[:keep]

    def _undecided(self, text: str) -> int:
        """Where the longest ending that begins a stop text starts; the length if there is none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            ending = text[start:]
            if any(stop.startswith(ending) for stop in self.stops):
                return start
        return len(text)
