"""Named shapes have the sizes that were published."""

from __future__ import annotations

from typing import Any

import pytest

from inkstone import registry

EXACT = {  # counted from the published weights
    ("bert", "bert-base", "none"): 109_482_240 - 590_592,  # without its pooler
    ("bert", "bert-base", "pretraining"): 110_106_428,
    ("bert", "bert-large", "pretraining"): 336_226_108,
    ("bert", "bert-large", "none"): 335_141_888 - 1_049_600,
    ("bert", "bert-base-cased", "none"): 108_310_272 - 590_592,
    ("bert", "bert-base-chinese", "none"): 102_267_648 - 590_592,
    ("bert", "minilm-l6", None): 22_713_216,
    ("roberta", "roberta-base", "mlm"): 124_697_433,
    ("roberta", "roberta-large", "mlm"): 355_412_057,
    ("distilbert", "distilbert-base", "mlm"): 66_985_530,
    ("modernbert", "modernbert-base", "mlm"): 149_655_232,
    ("modernbert", "modernbert-large", "mlm"): 395_881_664,
    ("t5", "t5-small", None): 60_506_624,
    ("t5", "t5-base", None): 222_903_552,
    ("t5", "t5-large", None): 737_668_096,
    ("t5", "t5-3b", None): 2_851_598_336,
    ("t5", "t5-11b", None): 11_307_321_344,
    ("t5", "t5-v1.1-small", None): 76_961_152,
    ("t5", "t5-v1.1-base", None): 247_577_856,
    ("t5", "t5-v1.1-large", None): 783_150_080,
    ("t5", "t5-v1.1-xl", None): 2_849_757_184,
    ("t5", "t5-v1.1-xxl", None): 11_135_332_352,
    ("marian", "opus-mt-en-de", None): 74_410_496 - 2 * 512 * 512,  # without its fixed waves
    ("bart", "bart-base", None): 139_420_416,
    ("bart", "bart-large", None): 406_291_456,
    ("mixtral", "mixtral-8x7b", None): 46_702_792_704,
}
NAMED = {  # sizes that papers give in round figures, in millions; LaMDA's leave the words out
    ("gpt3", "gpt3-small"): 125, ("gpt3", "gpt3-medium"): 350, ("gpt3", "gpt3-large"): 760,
    ("gpt3", "gpt3-xl"): 1300, ("gpt3", "gpt3-2.7b"): 2700, ("gpt3", "gpt3-6.7b"): 6700,
    ("gpt3", "gpt3-13b"): 13000, ("gpt3", "gpt3-175b"): 175000,
    ("transformer", "transformer-base"): 65, ("transformer", "transformer-big"): 213,
    ("lamda", "lamda-2b"): 2100, ("lamda", "lamda-8b"): 8600, ("lamda", "lamda-137b"): 137000,
}  # fmt: skip


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_published_weights_have_as_many_parameters(case: tuple[str, str, Any]) -> None:
    name, preset, head = case
    family = registry.load("models", name)
    config = family.PRESETS[preset]
    config = config if head is None else config.model_copy(update={"head": head})
    assert family.count_parameters(config) == EXACT[case]


def test_every_preset_of_these_families_is_checked() -> None:
    checked = {case[:2] for case in (*EXACT, *NAMED)}
    for name in {name for name, _ in checked}:
        named = {(name, preset) for preset in registry.load("models", name).PRESETS}
        assert named == {case for case in checked if case[0] == name}


@pytest.mark.parametrize("case", NAMED, ids=str)
def test_published_sizes(case: tuple[str, str]) -> None:
    name, preset = case
    family = registry.load("models", name)
    config = family.PRESETS[preset]
    words = config.vocab_size * config.d_model if name == "lamda" else 0
    assert family.count_parameters(config) - words == pytest.approx(NAMED[case] * 1e6, rel=0.035)
