"""nn/rope.py: the angles, relative positions, and precision that survives a cast."""

from __future__ import annotations

import math

import torch

from inkstone.nn.rope import Rope, rotate


def test_a_pair_turns_by_position_times_frequency() -> None:
    rope = Rope(4, 100.0, 16)
    cos, sin = rope.tables(torch.tensor([3]), 4, torch.float32)
    x = torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 4)
    turned = rotate(x, cos, sin).flatten().tolist()
    slow = 3 * 100.0 ** (-1 / 2)
    expected = [math.cos(3), 2 * math.cos(slow), math.sin(3), 2 * math.sin(slow)]
    assert all(abs(a - b) < 1e-6 for a, b in zip(turned, expected, strict=True))


def test_scores_depend_on_the_distance_only() -> None:
    rope = Rope(8, 10000.0, 64)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(i: int, j: int) -> float:
        at = [rope.tables(torch.tensor([p]), 64, torch.float32) for p in (i, j)]
        return float((rotate(q, *at[0]) * rotate(k, *at[1])).sum())

    assert abs(score(5, 2) - score(33, 30)) < 1e-4
    assert abs(score(5, 2) - score(5, 3)) > 1e-3


def test_tables_grow_on_demand_and_stay_fp32() -> None:
    rope = Rope(4, 10000.0, 1 << 20)
    start = rope.cos.shape[0]
    rope.to(torch.bfloat16)
    assert rope.cos.dtype == torch.float32
    exact = Rope(4, 10000.0, 1 << 20).cos
    assert torch.equal(rope.cos, exact)
    rope.tables(torch.tensor([start]), start + 1, torch.float32)
    assert start < rope.cos.shape[0] < 1 << 20
    assert torch.equal(rope.cos[:start], exact)


def test_a_model_laid_out_without_memory_has_real_tables() -> None:
    with torch.device("meta"):
        rope = Rope(4, 10000.0, 16)
    assert not rope.cos.is_meta and rope.cos.shape == (16, 2)
    assert not rope.state_dict(), "tables are not part of a checkpoint"
