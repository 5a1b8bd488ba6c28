"""planning/cost.py: checked against the papers' own statements and a count by hand."""

from __future__ import annotations

import itertools

import pytest

from inkstone.planning import cost


def test_a_surplus_of_parameters_is_worth_ever_less() -> None:
    unique = 1e6
    sizes = [2.5e5, 1e6, 4e6, 1.6e7, 6.4e7]
    losses = [cost.predicted_loss(cost.Budget(int(n), 8 * unique, unique)) for n in sizes]
    gains = [before - after for before, after in itertools.pairwise(losses)]
    assert all(gain >= 0 for gain in gains) and gains == sorted(gains, reverse=True)
    assert gains[-1] < 0.02 * gains[0]


def test_repetition_is_nearly_as_good_as_new_text_at_first_and_worthless_after_forty() -> None:

    def loss(epochs: float, unique: float = 1e8) -> float:
        return cost.predicted_loss(cost.Budget(5_000_000, epochs * unique, unique))

    fresh = cost.predicted_loss(cost.Budget(5_000_000, 4e8, 4e8))
    assert loss(4) - fresh < 0.3 * (loss(1) - fresh)
    assert loss(40) - loss(80) < 0.3 * (loss(1) - loss(4))


def test_loss_falls_with_data_and_never_below_the_floor() -> None:
    losses = [cost.predicted_loss(cost.Budget(10**7, d, d)) for d in (1e6, 1e7, 1e8, 1e9)]
    assert losses == sorted(losses, reverse=True) and losses[-1] > 1.87


def test_muon_operations_by_hand() -> None:
    d, f = 2, 3  # four 2×2 matrices, three 2×3: per iteration 6·8 and 4·4·3 + 2·8
    assert cost.muon_flops(d, f, n_layers=1) == 5 * (4 * 48 + 3 * (48 + 16))


@pytest.mark.parametrize("seq_len", [64, 256, 1000])
def test_micro_batch_divides_the_step_and_fits(seq_len: int) -> None:
    per_step = 24 * seq_len
    rows = cost.micro_batch(per_step, seq_len, 4, 256, device="cpu", free_bytes=8 << 30)
    assert 24 % rows == 0 and (rows * seq_len <= 8192 or rows == 1)
    tight = cost.micro_batch(per_step, seq_len, 4, 256, device="cpu", free_bytes=1 << 20)
    assert tight == 1


def test_hardly_any_data_is_a_bad_choice_but_a_number() -> None:
    losses = [cost.predicted_loss(cost.Budget(10**6, t, 1e6)) for t in (1e-3, 0.3, 1.0, 100.0)]
    assert all(isinstance(x, float) for x in losses) and losses == sorted(losses, reverse=True)
