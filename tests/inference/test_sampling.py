"""Filters equal those of transformers; draws follow the distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inkstone.errors import ModelError, UsageError
from inkstone.inference import SamplingConfig
from inkstone.inference.sampling import Draws, Sampler, draw, penalize_repetition

V = 211


def _logits(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def _sampler(configs: list[SamplingConfig], prompts: list[list[int]] | None = None) -> Sampler:
    cpu = torch.device("cpu")
    told = prompts or [[] for _ in configs]
    rows = [Draws(config, V, cpu, ids) for config, ids in zip(configs, told, strict=True)]
    return Sampler(rows, V, cpu)


def _next(sampler: Sampler, logits: Tensor) -> list[int]:
    """The chosen tokens; every row takes its own."""
    ids: list[int] = sampler(logits)[0].tolist()
    for row, token in zip(sampler.rows, ids, strict=True):
        row.take(token)
    return ids


def _distribution(logits: Tensor, configs: list[SamplingConfig]) -> Tensor:
    """Probabilities that the sampler draws from, in vocabulary order."""
    sampler = _sampler(configs)
    scores, tokens = sampler.candidates(logits)
    probs = scores.softmax(-1)
    return probs if tokens is None else torch.zeros_like(logits).scatter_(1, tokens, probs)


def _theirs(logits: Tensor, **settings: Any) -> Tensor:
    from transformers.generation import logits_process as hf

    made = []
    if "temperature" in settings:
        made.append(hf.TemperatureLogitsWarper(settings["temperature"]))
    if "top_k" in settings:
        made.append(hf.TopKLogitsWarper(settings["top_k"]))
    if "top_p" in settings:
        made.append(hf.TopPLogitsWarper(settings["top_p"]))
    if "min_p" in settings:
        made.append(hf.MinPLogitsWarper(settings["min_p"]))
    for process in made:
        logits = process(None, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 40},
        {"temperature": 1.0, "top_k": 10_000},
        {"temperature": 1.3, "top_p": 0.9},
        {"temperature": 1.0, "top_p": 1e-6},
        {"temperature": 2.0, "min_p": 0.05},
        {"temperature": 1.0, "min_p": 1.0},
        {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_filters_equal_those_of_transformers(settings: dict[str, Any]) -> None:
    logits = _logits()
    ours = _distribution(logits, [SamplingConfig(**settings)] * 4)
    torch.testing.assert_close(ours, _theirs(logits, **settings), rtol=1e-5, atol=1e-7)


def test_rows_keep_their_own_settings() -> None:
    all_settings: list[dict[str, Any]] = [
        {"temperature": 0.5}, {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_p": 0.6}, {"temperature": 1.5, "min_p": 0.2},
    ]  # fmt: skip
    logits = _logits()
    ours = _distribution(logits, [SamplingConfig(**s) for s in all_settings])
    for row, settings in enumerate(all_settings):
        alone = _distribution(logits[row : row + 1], [SamplingConfig(**settings)])
        torch.testing.assert_close(ours[row], alone[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            ours[row], _theirs(logits[row : row + 1], **settings)[0], rtol=1e-5, atol=1e-7
        )


def test_a_rows_draws_do_not_depend_on_its_neighbours_settings() -> None:
    mine = SamplingConfig(temperature=1.0, seed=5)
    others = [SamplingConfig(temperature=1.0, top_k=3, seed=9), SamplingConfig(top_p=0.5, seed=1)]
    alone = _sampler([mine])
    among = _sampler([others[0], mine, others[1]])
    for step in range(300):
        logits = _logits(3, seed=step)
        assert _next(alone, logits[1:2])[0] == _next(among, logits)[1]


def test_dropping_rows_leaves_the_others_as_they_were() -> None:
    configs = [
        SamplingConfig(temperature=1.0, seed=i, repetition_penalty=1.2, top_p=0.9) for i in range(4)
    ]
    whole = _sampler(configs, [[i] for i in range(4)])
    fewer = _sampler(configs, [[i] for i in range(4)])
    for step in range(260):  # past the random numbers that were drawn ahead
        logits = _logits(4, seed=step)
        expected = _next(whole, logits)
        rows = [0, 1, 2, 3] if step < 7 else [1, 3]
        if step == 7:
            fewer = Sampler([fewer.rows[i] for i in rows], V, torch.device("cpu"))
        assert _next(fewer, logits[rows]) == [expected[i] for i in rows]


def test_looking_ahead_takes_the_same_random_numbers() -> None:
    """What is chosen ahead for tokens that are only guessed is what is chosen when they come."""
    config = SamplingConfig(temperature=1.0, seed=3)
    one, other = _sampler([config]), _sampler([config])
    for step in range(100):
        logits = _logits(4, seed=step)
        ahead = Sampler(one.rows * 4, V, torch.device("cpu"), range(4))
        expected = [_next(other, logits[i : i + 1])[0] for i in range(4)]
        assert ahead(logits)[0].tolist() == expected
        for token in expected:
            one.rows[0].take(token)


def test_repetition_penalty_equals_that_of_transformers() -> None:
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits = _logits()
    ids = torch.randint(0, V, (4, 30), generator=torch.Generator().manual_seed(1))
    seen = torch.zeros(4, V, dtype=torch.bool).scatter_(1, ids, True)
    ours = penalize_repetition(logits, seen, torch.full((4, 1), 1.7))
    torch.testing.assert_close(ours, RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone()))


def test_the_penalty_counts_prompt_and_answer() -> None:
    config = SamplingConfig(temperature=0.0, repetition_penalty=50.0)
    logits = torch.zeros(1, V)
    logits[0, :4] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    sampler = _sampler([config], [[0, 0]])
    assert [_next(sampler, logits)[0] for _ in range(3)] == [1, 2, 3]


def test_what_an_answer_holds_loses_score() -> None:
    """OpenAI's μ − c·frequency − (c > 0)·presence; tokens of the prompt do not count."""
    config = SamplingConfig(temperature=0.0, frequency_penalty=0.5, presence_penalty=0.7)
    logits = torch.zeros(1, V)
    logits[0, :2] = torch.tensor([2.0, 0.0])
    sampler = _sampler([config, SamplingConfig(temperature=0.0)], [[0, 0], []])
    found = [_next(sampler, logits.expand(2, V)) for _ in range(5)]
    # 2.0, 2 - 1.2 = 0.8, 0.3, then -0.2: below the zeros of the others
    assert [ids[0] for ids in found] == [0, 0, 0, 1, 2] and {ids[1] for ids in found} == {0}


def test_biases_force_and_forbid() -> None:
    logits = _logits(2)
    best = int(logits[0].argmax())
    configs = [
        SamplingConfig(temperature=1.0, seed=1, logit_bias={7: 100.0, V + 5: 100.0}),
        SamplingConfig(temperature=0.0, logit_bias={best: -100.0, int(logits[1].argmax()): -100.0}),
    ]
    first, second = _next(_sampler(configs), logits)
    assert first == 7 and second == int(logits[1].topk(2).indices[1])
    with pytest.raises(UsageError, match="logit_bias"):
        SamplingConfig(logit_bias={1: 101.0})


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]]).expand(100_000, 4)
    uniforms = torch.rand(100_000, generator=torch.Generator().manual_seed(0))
    counts = draw(logits, uniforms).bincount(minlength=4) / 100_000
    torch.testing.assert_close(counts, logits[0].softmax(-1), atol=0.005, rtol=0)
    assert counts[2] == 0


def test_the_ends_of_the_interval_draw_possible_tokens() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]]).expand(2, 4)
    assert draw(scores, torch.tensor([0.0, 1 - 2.0**-24])).tolist() == [1, 2]


def test_greedy_and_sampling_rows_in_one_batch() -> None:
    logits = _logits(2)
    configs = [SamplingConfig(temperature=0.0), SamplingConfig(temperature=5.0, seed=1)]
    sampler = _sampler(configs)
    picks = [_next(sampler, logits) for _ in range(20)]
    assert {row[0] for row in picks} == {int(logits[0].argmax())}
    assert len({row[1] for row in picks}) > 3


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 5e-324])
def test_tiny_temperatures_do_not_overflow(temperature: float) -> None:
    logits = _logits(1)
    sampler = _sampler([SamplingConfig(temperature=temperature, seed=0)])
    assert int(sampler(logits)[0][0]) == int(logits.argmax())


def test_log_probabilities_are_the_models_own() -> None:
    logits = _logits(2)
    configs = [
        SamplingConfig(temperature=0.3, top_k=2, seed=0, top_logprobs=3),
        SamplingConfig(seed=0, logprobs=True),
    ]
    ids, scores = _sampler(configs)(logits)
    truth = logits.log_softmax(-1)
    assert scores[0] is not None and scores[1] is not None
    assert scores[0].id == ids[0] and scores[0].logprob == pytest.approx(float(truth[0, ids[0]]))
    values, tokens = truth[0].topk(3)
    assert [t for t, _ in scores[0].top] == tokens.tolist()
    assert [p for _, p in scores[0].top] == pytest.approx(values.tolist())
    assert scores[1].top == ()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_scores_are_an_error(bad: float, temperature: float) -> None:
    logits = _logits(1)
    logits[0, 3] = bad
    sampler = _sampler([SamplingConfig(temperature=temperature)])
    with pytest.raises(ModelError, match="not finite"):
        sampler(logits)
