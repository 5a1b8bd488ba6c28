"""Settings are checked, and mistakes name the field."""

from __future__ import annotations

from typing import Any

import pytest

from inkstone.errors import UsageError
from inkstone.inference import SamplingConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**63), ("max_tokens", 1.5),
        ("max_tokens", "10"), ("max_tokens", True), ("temperature", -0.1), ("temperature", 1e400),
        ("temperature", float("nan")), ("temperature", "hot"), ("temperature", None), ("top_k", 0),
        ("top_k", -5), ("top_p", 0.0), ("top_p", 1.01), ("min_p", -0.01), ("min_p", 1.1),
        ("repetition_penalty", 0.0), ("repetition_penalty", -1.0), ("stop", 3), ("stop", ("",)),
        ("stop", ["a"] * 17), ("stop", "x" * 1001), ("stop", [1]), ("seed", -1), ("seed", 2**63),
        ("logprobs", "yes"), ("top_logprobs", 101), ("top_logprobs", -1),
    ],
)  # fmt: skip
def test_out_of_range_names_the_field(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"setting {field} = ") as caught:
        SamplingConfig(**{field: value})
    assert caught.value.exit_code == 2
    with pytest.raises(UsageError, match=field):
        SamplingConfig().but(**{field: value})


def test_unknown_settings_give_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'temperature'"):
        SamplingConfig(temprature=1.0)


def test_a_huge_value_is_not_repeated() -> None:
    with pytest.raises(UsageError) as caught:
        SamplingConfig(temperature="x" * 10**6)
    assert len(str(caught.value)) < 500


def test_plain_values_are_taken() -> None:
    config = SamplingConfig(temperature=1, stop="END", top_k=5, seed=2**63 - 1)
    assert config.stop == ("END",) and config.temperature == 1.0
    assert SamplingConfig(stop=["a", "b"]).stop == ("a", "b")
    assert config.but(temperature=0.0).greedy and not config.greedy
