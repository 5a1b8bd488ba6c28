"""planning/examples.py: size, steps and rates from labelled examples and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from inkstone import registry
from inkstone.device import Machine
from inkstone.planning import constants as c
from inkstone.planning.examples import FIRM_DROPOUT, WARMUP_SHARE, ExampleFacts, plan_examples

MACHINE = Machine(
    device="cpu", name="test", cores=2, threads=2, instruction_sets=("AVX2",), torch_version="2",
    matmul_gflops={"fp32": 100.0, "bf16": 400.0}, bandwidth_gb_s=20.0,
    memory_total_bytes=8 << 30, memory_free_bytes=6 << 30, disk_free_bytes=1 << 40, compiler=None,
)  # fmt: skip
PER_EPOCH, SEQ_LEN = 280, 40
TRANSLATORS = [
    name
    for name in registry.names("models")
    if getattr(registry.load("models", name), "KIND", "") == "seq2seq"
]


def plan(minutes: float, family: str, tokens: int = 1_000_000, **training: Any) -> dict[str, Any]:
    """Every choice, where a step takes the time of its operations at 100 GFLOP/s."""
    room = registry.load("models", family)

    def seconds(model: Mapping[str, Any], step: Mapping[str, Any]) -> float:
        flops = 3.0 * room.flops_per_token(room.Config(**model), SEQ_LEN)
        return 0.02 + tokens / PER_EPOCH * float(flops) / 1e11

    given = {
        "model": {"family": family},
        "training": {"minutes": minutes, **training},
        "corpus": {"seq_len": SEQ_LEN},
    }
    fixed = {"vocab_size": 4096, "start_id": 0, "pad_id": 1}
    fixed = {name: value for name, value in fixed.items() if name in room.Config.model_fields}
    facts = ExampleFacts("translation", "seq2seq", 29_000, tokens, 30_000, fixed)
    result = plan_examples(
        facts, MACHINE, given, precision="bf16",
        batches_per_epoch=lambda _: PER_EPOCH, time_step=seconds,
    )  # fmt: skip
    return {x.key: x.value for x in result.choices} | dict(result.predicted)


@pytest.mark.parametrize("family", TRANSLATORS)
def test_more_time_gives_a_translator_more_weights(family: str) -> None:
    sizes = [plan(minutes, family)["parameters"] for minutes in (0.5, 3, 20, 200)]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_a_translator_begins_with_muon_unless_told_otherwise() -> None:
    found = plan(3, "transformer")
    assert found["training.optimizer"] == "muon"
    assert found["training.matrix_lr"] == c.MUON_MATRIX_LR
    other = plan(3, "transformer", optimizer="adamw")
    assert other["training.optimizer"] == "adamw" and "training.matrix_lr" not in other


@pytest.mark.parametrize("family", TRANSLATORS)
def test_a_translator_that_reads_its_pairs_often_drops_more(family: str) -> None:
    assert plan(1, family)["model.dropout"] < FIRM_DROPOUT
    assert plan(1000, family)["model.dropout"] == FIRM_DROPOUT


def test_warm_up_is_a_share_of_the_steps_that_fit() -> None:
    short, long = plan(1, "marian"), plan(10_000, "marian")
    assert long["training.warmup_steps"] == round(
        WARMUP_SHARE * registry.load("tasks", "translation").Task.EPOCHS[0] * PER_EPOCH
    )
    fitting = 60 / short["step_s"]
    assert fitting < 0.5 * short["steps"]
    assert short["training.warmup_steps"] <= round(1.1 * WARMUP_SHARE * fitting)


@pytest.mark.parametrize(("pairs", "wanted"), [(5000, 64), (100, 25), (10, 8)])
def test_a_step_of_similarity_holds_many_pairs(pairs: int, wanted: int) -> None:
    facts = ExampleFacts("similarity", "encoder", pairs, 100 * pairs, 100, {"head": "none"})
    given = {"model": {"family": "bert"}, "training": {"minutes": 1}, "corpus": {"seq_len": 256}}
    result = plan_examples(
        facts, MACHINE, given, precision="fp32",
        batches_per_epoch=lambda _: PER_EPOCH, time_step=lambda *_: 0.1,
    )  # fmt: skip
    found = {x.key: x.value for x in result.choices}
    assert found["training.examples_per_step"] == wanted
    assert found["training.micro_batch_size"] == min(wanted, c.MICRO_TOKENS["cpu"] // 256)


@pytest.mark.parametrize(
    ("task", "rank", "times"),
    [("instructions", 0, 1), ("instructions", 8, 10), ("preferences", 0, 0.2)],
)
def test_rates_of_fine_tuning(task: str, rank: int, times: float) -> None:
    room = registry.load("models", "llama")
    pretrained = room.Config(vocab_size=4096, d_model=768, n_layers=2, n_heads=12).model_dump()
    given = {"model": {"family": "llama"}, "corpus": {"seq_len": SEQ_LEN}, "lora": {"rank": rank}}
    facts = ExampleFacts(task, "causal", 1000, 100_000, 10_000, {}, pretrained)
    result = plan_examples(
        facts, MACHINE, given, precision="bf16",
        batches_per_epoch=lambda _: PER_EPOCH, time_step=lambda *_: 0.1,
    )  # fmt: skip
    found = {x.key: x.value for x in result.choices}
    assert found["training.lr"] == pytest.approx(times * 5e-5)
    assert found["training.optimizer"] == "adamw"
