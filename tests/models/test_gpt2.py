"""models/gpt2.py: published sizes, a FLOP count by hand, the paper's initialisation."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from inkstone.models import gpt2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_presets_have_the_published_sizes(name: str, parameters: int) -> None:
    config = gpt2.PRESETS[name]
    assert gpt2.count_parameters(config) == parameters
    with torch.device("meta"):
        model = gpt2.Model(config)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_flops_by_hand() -> None:
    config = gpt2.Config(vocab_size=10, max_seq_len=8, d_model=4, n_layers=2, n_heads=2)
    a_block = 4 * 4 * 4 + 2 * 4 * 16  # q, k, v, o; up, down
    matmuls = 2 * (2 * a_block + 10 * 4)
    # Token t sees t + 1 keys: 1 + 2 + 3 = 6 in three tokens, 2 a token; each costs a dot product
    # of 4 and a sum of 4, in two layers.
    attention = 2 * 2 * (2 * 4 + 2 * 4)
    assert gpt2.flops_per_token(config, 3) == matmuls + attention


def test_matmul_flops_equal_what_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = gpt2.Config(vocab_size=50, max_seq_len=16, d_model=32, n_layers=3, n_heads=4)
    model = gpt2.Model(config)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(2, 16, dtype=torch.long))
    counted = counter.get_flop_counts()["Global"]
    matmuls = sum(n for op, n in counted.items() if "attention" not in str(op))
    attention = config.n_layers * 2 * (2 * 8.5 * 32)
    assert matmuls == 2 * 16 * (gpt2.flops_per_token(config, 16) - attention)


def test_initialised_as_the_paper_says() -> None:
    torch.manual_seed(0)
    config = gpt2.Config(vocab_size=500, max_seq_len=200, d_model=128, n_layers=8, n_heads=4)
    model = gpt2.Model(config)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "norm" in name:
            assert bool((p == 1).all()), name
        else:
            residual = name.split(".")[-2] in ("o", "down")
            expected = 0.01 if name == "position.weight" else 0.02 / (4 if residual else 1)
            assert float(p.detach().std()) == pytest.approx(expected, rel=0.05), name


def test_dropout_acts_in_training_only() -> None:
    config = gpt2.Config(
        vocab_size=50, max_seq_len=16, d_model=32, n_layers=1, n_heads=2, dropout=0.5
    )
    model, ids = gpt2.Model(config), torch.arange(8)[None]
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


@pytest.mark.parametrize(
    "bad",
    [
        {"d_model": 30, "n_heads": 4},
        {"d_model": 2**31},
        {"n_layers": 10**6},
        {"n_layers": 0},
        {"vocab_size": -1},
        {"norm_eps": float("nan")},
        {"d_modle": 3},
    ],
)
def test_impossible_shapes_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        gpt2.Config(**bad)  # type: ignore[arg-type]
