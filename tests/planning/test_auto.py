"""planning/auto.py: one dial, everything else follows, nothing that was given is touched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from inkstone import registry
from inkstone.device import Machine
from inkstone.errors import ModelError
from inkstone.planning import constants as c
from inkstone.planning.auto import plan_run, plan_vocabulary
from inkstone.planning.plan import CorpusFacts, Plan

MACHINE = Machine(
    device="cpu", name="test", cores=2, threads=2, instruction_sets=("AVX2",), torch_version="2",
    matmul_gflops={"fp32": 100.0, "bf16": 400.0}, bandwidth_gb_s=20.0,
    memory_total_bytes=8 << 30, memory_free_bytes=6 << 30, disk_free_bytes=1 << 40, compiler=None,
)  # fmt: skip


def facts(tokens: int = 5_000_000, vocab: int = 4096) -> CorpusFacts:
    return CorpusFacts(
        train_bytes=4 * tokens, train_documents=1000, train_tokens=tokens,
        valid_tokens=max(1000, tokens // 20), vocab_size=vocab,
    )  # fmt: skip


def plan(given: Mapping[str, Any] | None = None, of: CorpusFacts | None = None) -> Plan:
    return plan_run(of or facts(), MACHINE, given or {}, precision="bf16")


def flat(result: Plan) -> dict[str, Any]:
    return {x.key: x.value for x in result.choices}


CAUSAL = [
    name
    for name in registry.names("models")
    if getattr(registry.load("models", name), "KIND", "") == "causal"
]


@pytest.mark.parametrize("family", CAUSAL)
@pytest.mark.parametrize("minutes", [0.2, 3.0, 60.0, 1440.0])
def test_every_setting_of_a_run_is_resolved_with_a_reason(family: str, minutes: float) -> None:
    result = plan({"training": {"minutes": minutes}, "model": {"family": family}})
    values = flat(result)
    wanted = {
        "training.tokens_per_step", "training.micro_batch_size", "training.lr", "corpus.seq_len",
        "training.warmup_steps", "training.eval_every", "training.precision", "model.d_model",
        "model.n_layers", "model.vocab_size", "evaluation.live_tokens", "training.save_minutes",
    }  # fmt: skip
    assert wanted <= values.keys()
    assert all(x.reason for x in result.choices)
    sequences = values["training.tokens_per_step"] / values["corpus.seq_len"]
    assert sequences == int(sequences) and sequences % values["training.micro_batch_size"] == 0
    assert values["model.vocab_size"] == 4096


def test_more_time_gives_a_larger_model_until_the_text_is_used_up() -> None:
    much = facts(tokens=10**10)
    sizes = [
        plan({"training": {"minutes": m}}, much).predicted["parameters"] for m in (1, 10, 100, 1000)
    ]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    little = facts(tokens=200_000)
    last = [
        plan({"training": {"minutes": m}}, little).predicted["parameters"]
        for m in (1000, 10_000, 100_000)
    ]
    assert last[0] == last[1] == last[2] < sizes[-1]


def test_tiny_text_does_not_repeat_for_ever() -> None:
    result = plan({"training": {"minutes": 600}}, facts(tokens=100_000))
    values = flat(result)
    assert values["training.max_steps"] >= c.STEPS_MIN
    assert result.predicted["training_s"] < 600 * 60
    assert values["training.early_stop_patience"] == c.PATIENCE


def test_given_values_stand() -> None:
    given = {
        "training": {"minutes": 5.0, "lr": 0.123, "tokens_per_step": 1024, "optimizer": "adamw"},
        "model": {"family": "llama", "d_model": 96, "n_layers": 2, "n_heads": 3},
        "corpus": {"seq_len": 64},
    }
    result = plan(given)
    values = flat(result)
    for section, entries in given.items():
        for key, value in entries.items():
            assert values[f"{section}.{key}"] == value
    assert not set(given["training"]) & set(result.values().get("training", {}))
    assert result.values()["training"]["micro_batch_size"] * 64 <= 1024


def test_a_number_of_steps_may_stand_for_minutes() -> None:
    result = plan({"training": {"max_steps": 10}})
    assert "training.minutes" not in flat(result)
    assert result.predicted["steps"] == 10


def test_timings_correct_the_guess() -> None:
    """On a machine that turns out ten times slower, a smaller model is chosen."""
    given, much = {"training": {"minutes": 10.0}}, facts(tokens=10**10)
    guessed = plan(given, much).predicted
    seen = []

    def slow(config: Mapping[str, Any], step: Mapping[str, Any]) -> float:
        seen.append(config["d_model"])
        assert step["tokens_per_step"] % step["seq_len"] == 0
        return 40.0 * config["d_model"] / 100

    timed = plan_run(much, MACHINE, given, precision="bf16", time_step=slow).predicted
    assert 1 <= len(seen) <= c.TIMED_SHAPES
    assert timed["parameters"] < guessed["parameters"]


def test_impossible_model_settings_are_a_named_error() -> None:
    with pytest.raises(ModelError, match=r"multiple|divide"):
        plan({"model": {"family": "gpt2", "d_model": 100, "n_heads": 7}})


@pytest.mark.parametrize(
    ("size", "minutes", "low", "high"),
    [(5_000, 10, 512, 512), (4_000_000, 10, 4096, 4096), (10**10, 10, 8192, 8192),
     (10**10, 600, 32768, 32768)],
)  # fmt: skip
def test_vocabulary_grows_with_the_text(size: int, minutes: float, low: int, high: int) -> None:
    of = CorpusFacts(train_bytes=size, train_documents=10)
    chosen = flat(plan_vocabulary(of, "bpe", None, minutes, "cpu"))["tokenizer.vocab_size"]
    assert low <= chosen <= high


def test_vocabulary_makes_room_for_characters() -> None:
    of = CorpusFacts(train_bytes=300_000, train_documents=10, characters=3000)
    assert flat(plan_vocabulary(of, "bpe", None, 10, "cpu"))["tokenizer.vocab_size"] >= 6000
    assert not plan_vocabulary(of, "char", None, 10, "cpu").choices
    assert not plan_vocabulary(of, "bpe", 777, 10, "cpu").values()


@pytest.mark.parametrize(
    ("family", "fixed"),
    [("bert", {"head": "pretraining"}), ("roberta", {"head": "mlm", "first_position": 2}),
     ("modernbert", {"head": "mlm"}), ("t5", {"start_id": 1}), ("bart", {"start_id": 2})],
)  # fmt: skip
def test_an_objective_gets_a_shape_that_holds_what_it_needs(
    family: str, fixed: dict[str, Any]
) -> None:
    seen: list[int] = []

    def flops(config: Any, length: int) -> float:
        seen.append(length)
        return 2.0 * registry.load("models", family).count_parameters(config)

    given = {"training": {"minutes": 5.0}, "model": {"family": family}}
    result = plan_run(facts(), MACHINE, given, precision="bf16", fixed=fixed, flops=flops)
    values = flat(result)
    assert set(seen) == {values["corpus.seq_len"]}
    fields = {k.removeprefix("model."): v for k, v in values.items() if k.startswith("model.")}
    config = registry.load("models", family).Config(
        **{k: v for k, v in fields.items() if k != "family"}
    )
    assert all(getattr(config, name) == value for name, value in fixed.items())
    assert config.n_heads * config.head_dim == config.d_model


def test_text_that_is_hidden_anew_may_be_read_more_often() -> None:
    little, given = facts(tokens=100_000), {"training": {"minutes": 600}}
    plain = plan(given, little).predicted["epochs"]
    hidden = plan_run(little, MACHINE, given, precision="bf16", fixed={}).predicted["epochs"]
    assert plain <= c.EPOCHS_USEFUL + 1 < hidden <= c.EPOCHS_CORRUPTED + 1
