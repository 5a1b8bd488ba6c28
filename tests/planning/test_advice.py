"""Surveys, learning curves, the Pareto front, and what is recommended from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inkstone.planning import advice
from inkstone.planning.advice import Candidate, recommend, settings_for
from inkstone.planning.curve import Expected, extrapolate
from inkstone.planning.pareto import dominated_by
from inkstone.planning.survey import repeats, survey


def test_scripts_and_lengths() -> None:
    facts = survey(["one two three"] * 19 + ["中文没有空格" * 50])
    assert facts.texts == 20 and facts.median_characters == 13 and facts.longest_characters == 300
    assert facts.median_words == 3 and set(facts.scripts) == {"Latin", "Han"}
    assert facts.scripts["Han"] == pytest.approx(300 / (300 + 19 * 11))
    assert facts.spaceless
    assert not survey(["plain English", "и по-русски"]).spaceless
    assert survey(["カタカナ"]).spaceless and not survey(["123 !?"]).scripts
    assert survey([]).texts == 0 and "no letters" in survey([]).line()


def test_repeats_are_counted() -> None:
    pairs = [("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("c", "z"), ("\ud800", "z")]
    found = repeats(pairs)
    assert (found.copies, found.contradictions) == (2, 1)
    assert repeats([]).copies == 0


def curve(sizes: list[int], a: float, b: float, held_out: int, seed: int = 0) -> np.ndarray:
    """Scores of a power law, as a sample of held-out examples and draws of it would give them."""
    chance = np.random.default_rng(seed)
    luck = np.sort(chance.random(held_out))  # the same examples are hard at every size
    errors = np.stack([(luck < a * n**-b).astype(float) for n in sizes])
    draws = chance.multinomial(held_out, np.full(held_out, 1 / held_out), 300) / held_out
    return 1 - np.concatenate((errors.mean(1, keepdims=True), errors @ draws.T), axis=1)


def test_a_power_law_is_found_again() -> None:
    sizes = [250, 500, 1000, 2000]
    covered = 0
    for seed in range(20):
        found = extrapolate("accuracy", sizes, curve(sizes, 2.0, 0.35, 2000, seed), 16000, 2000)
        assert found is not None and found.low <= found.value <= found.high
        covered += found.low <= 1 - 2.0 * 16000**-0.35 <= found.high
        assert found.sizes == (*sizes,) and "16,000" in found.basis and "power law" in found.basis
    assert covered >= 17  # of 20 intervals of 95 %


def test_nothing_is_said_where_nothing_is_known() -> None:
    scores = curve([250, 500], 2.0, 0.3, 500)
    assert extrapolate("accuracy", [250, 500], scores, 1000, 500) is None  # two sizes are no curve
    scores = curve([250, 500, 1000], 2.0, 0.3, 500)
    assert extrapolate("accuracy", [250, 500, 1000], scores, 10**6, 500) is None  # too far
    whole = extrapolate("accuracy", [250, 500, 1000], scores, 1000, 500)
    assert whole is not None and whole.value == scores[2, 0] and "measured" in whole.basis


def test_a_score_that_falls_is_not_made_to_fall_further() -> None:
    scores = np.array([[0.8] * 50, [0.79] * 50, [0.78] * 50])
    found = extrapolate("accuracy", [100, 200, 400], scores, 3200, 100)
    assert found is not None and 0.78 <= found.value <= 0.8


costs = st.lists(st.tuples(*[st.integers(0, 4).map(float) | st.none()] * 3), min_size=1, max_size=7)


@settings(max_examples=100, deadline=None)
@given(costs)
def test_the_front_by_its_definition(rows: list[tuple[float | None, ...]]) -> None:
    named = {str(i): row for i, row in enumerate(rows)}
    found = dominated_by(named)
    for name, row in named.items():
        beaten = False
        for other in named.values():
            both = [(a, b) for a, b in zip(other, row, strict=True) if None not in (a, b)]
            beaten |= all(a <= b for a, b in both) and any(a < b for a, b in both)
        assert (found[name] is not None) == beaten
    known = {n: r for n, r in named.items() if None not in r}
    if len(known) == len(named):
        assert None in found.values()  # where all is known, something is on the front


def expected(value: float) -> Expected:
    return Expected("accuracy", value, value - 0.01, value + 0.01, "measured")


def test_recommendations() -> None:
    bag = Candidate("bag_of_words", {}, "", "linear", training_s=5.0, expected=expected(0.9))
    hmm = Candidate("hmm", {}, "", "markov", training_s=1.0, expected=expected(0.8))
    bert = Candidate("bert", {}, "", "encoder", training_s=60.0)
    slow = Candidate("crf", {}, "", "markov", training_s=900.0, expected=expected(0.95))
    broken = Candidate("bart", {}, "", "seq2seq", problem="no room")
    chosen, reasons, against = recommend("classification", [bert, bag, hmm, slow, broken], 2)
    assert chosen == "bag_of_words" and "90.0 (89.0 to 91.0)" in reasons[0]
    assert "not known" in against["bert"] and "lower" in against["hmm"]
    assert "15 min" in against["crf"] and against["bart"] == "no room"
    assert recommend("classification", [bert, bag, hmm, slow], 20)[0] == "crf"
    chosen, reasons, _ = recommend("translation", [broken, bert], 2)
    assert chosen == "bert" and "not known" in reasons[0]
    assert recommend("translation", [broken], 2)[0] == ""


def test_settings_follow_the_texts() -> None:
    short, long, han = survey(["a few words"]), survey(["word " * 300]), survey(["没有空格"])
    assert settings_for("bag_of_words", short)[0]["char_ngrams"] == 5
    assert settings_for("bag_of_words", long)[0]["word_ngrams"] == 3
    assert settings_for("bag_of_words", han)[0] == {
        "word_ngrams": 0, "char_ngrams": 4, "min_df": 2, "weighting": "naive_bayes",
    }  # fmt: skip
    assert settings_for("bert", han) == ({}, "")


def test_warnings_name_what_is_wrong() -> None:
    found = "; ".join(advice.warnings_of({"train": 100}, {"a": 95, "b": 5}, 7, 2, 3))
    for part in ("only 100", "uneven labels, 95 against 5", "fewer than 10", "7 training texts",
                 "2 of them", "3 texts that are scored"):  # fmt: skip
        assert part in found
    assert advice.warnings_of({"train": 5000}, {"a": 2500, "b": 2500}, 0, 0, 0) == []
