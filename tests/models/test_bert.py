"""models/bert.py: what a text's label costs."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from inkstone.models import bert


def test_matmul_flops_of_a_text_equal_what_torch_counts() -> None:
    config = bert.Config(
        vocab_size=50, max_seq_len=32, d_model=32, n_layers=3, n_heads=4, head="sequence"
    )
    d, f, n = 32, 128, 16
    model = bert.Model(config).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, n, dtype=torch.long))
    counts = counter.get_flop_counts()["Global"]
    matmuls = sum(v for k, v in counts.items() if "attention" not in str(k))
    attention = 2.0 * 2 * (config.n_layers - 1) * n * d
    first = 2 * (4 * d * d + 2 * d * f + d * d + 2 * d)  # the last block, pooler and classifier
    first += 2 * 2 * config.n_heads * n * d  # its query reads what keys and values are made of
    assert matmuls == n * (bert.flops_per_token(config, n) - attention) + first
