"""models/llama.py: published sizes, a FLOP count by hand, defaults, refusals."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from inkstone.errors import ModelError
from inkstone.models import llama

TINY = {"vocab_size": 10, "max_seq_len": 8, "d_model": 4, "n_layers": 2, "n_heads": 2, "d_ff": 6}

STRETCHED = {"rope_factor": 8.0, "rope_low": 1.5, "rope_high": 3.0, "rope_length": 64}


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-30b", 32_528_943_616),
        ("llama-65b", 65_285_660_672),
        ("llama-2-7b", 6_738_415_616),
        ("llama-2-13b", 13_015_864_320),
        ("llama-2-70b", 68_976_648_192),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
        ("llama-3.2-3b", 3_212_749_824),
        ("mistral-7b", 7_241_732_096),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
        ("tinyllama-1.1b", 1_100_048_384),
    ],
)
def test_presets_have_the_published_sizes(name: str, parameters: int) -> None:
    config = llama.PRESETS[name]
    assert llama.count_parameters(config) == parameters
    with torch.device("meta"):
        model = llama.Model(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_flops_by_hand() -> None:
    config = llama.Config(**TINY, n_kv_heads=1)  # type: ignore[arg-type]
    a_block = (4 * 4 + 4 * 2 + 4 * 2 + 4 * 4) + 3 * 4 * 6  # q, k, v, o; gate, up, down
    matmuls = 2 * (2 * a_block + 10 * 4)
    attention = 2 * 2 * (2 * 4 + 2 * 4)  # three tokens see 2 keys on average, in two layers
    assert llama.flops_per_token(config, 3) == matmuls + attention


def test_flops_with_a_window_by_hand() -> None:
    full = llama.Config(**TINY)  # type: ignore[arg-type]
    windowed = llama.Config(**TINY, sliding_window=2)  # type: ignore[arg-type]
    # Five tokens see 1 + 2 + 2 + 2 + 2 = 9 keys instead of 15; a key costs 16 in each layer.
    saved = llama.flops_per_token(full, 5) - llama.flops_per_token(windowed, 5)
    assert saved == pytest.approx(2 * 16 * (15 - 9) / 5)


def test_zeros_are_filled_from_the_other_fields() -> None:
    config = llama.Config(d_model=96, n_heads=6)
    assert (config.n_kv_heads, config.head_dim, config.d_ff) == (6, 16, 256)
    assert llama.Config(**config.model_dump()) == config


@pytest.mark.parametrize(
    "bad",
    [
        {"d_model": 30, "n_heads": 4},
        {"n_heads": 8, "n_kv_heads": 3},
        {"d_model": 12, "n_heads": 4},
        {"d_model": 2**31},
        {"n_layers": 10**6},
        {"rope_theta": float("inf")},
        {"sliding_window": 0},
        {"rope_factor": 0.5},
        {"rope_low": 4.0},
    ],
)
def test_impossible_shapes_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        llama.Config(**bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unsupported",
    [
        {"hidden_act": "gelu"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {
            "model_type": "qwen3",
            "use_sliding_window": True,
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ],
)
def test_what_the_family_lacks_is_refused_by_name(unsupported: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"config\.json: "):
        llama.from_hf_config({"model_type": "llama", **unsupported})


@pytest.mark.parametrize("extra", [{}, {"qk_norm": True}, {"sliding_window": 3}, STRETCHED])
def test_configuration_survives_the_foreign_format(extra: dict[str, object]) -> None:
    config = llama.Config(**TINY, rope_theta=5e5, tied_head=False, **extra)  # type: ignore[arg-type]
    hf = llama.to_hf_config(config)
    assert llama.from_hf_config(hf) == config
    assert hf["rope_theta"] == hf["rope_parameters"]["rope_theta"] == 5e5
