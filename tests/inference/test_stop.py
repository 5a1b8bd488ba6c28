"""Stop texts wherever the borders fall."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.inference.stop import StopMatcher


def _run(stops: list[str], parts: list[str]) -> tuple[str, bool]:
    matcher = StopMatcher(stops)
    text = "".join(matcher.push(part) for part in parts) + matcher.flush()
    return text, matcher.stopped


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab\n", max_size=40),
    stops=st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(0, 40), max_size=12),
)
def test_any_cutting_gives_what_one_piece_gives(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    borders = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    parts = [text[a:b] for a, b in itertools.pairwise(borders)]
    places = [p for p in (text.find(s) for s in stops) if p >= 0]
    got, stopped = _run(stops, parts)
    assert stopped == bool(places)
    assert got == text[: min(places, default=len(text))]


def test_one_character_at_a_time() -> None:
    assert _run(["\nUser:"], list("yes\nUse it\nUser: no")) == ("yes\nUse it", True)


def test_holds_back_no_more_than_needed() -> None:
    matcher = StopMatcher(["STOP"])
    assert matcher.push("go S") == "go "
    assert matcher.push("TO") == ""
    assert matcher.push("Sy") == "STOSy"
    assert matcher.push("ST") == ""
    assert matcher.flush() == "ST"


def test_the_one_that_begins_first_counts() -> None:
    assert _run(["cd", "bcde"], ["abcdef"]) == ("a", True)
    assert _run(["cd", "bcde"], list("abcdef")) == ("a", True)
    assert _run(["cd", "bcde"], list("abcdxf")) == ("ab", True)
    assert _run(["cd", "bcde"], list("abcd")) == ("ab", True)


def test_nothing_follows_a_stop() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == "a"
    assert matcher.push("more") == "" and matcher.flush() == ""


def test_without_stops_all_passes() -> None:
    matcher = StopMatcher([])
    assert matcher.push("abc") == "abc" and matcher.flush() == "" and not matcher.stopped
