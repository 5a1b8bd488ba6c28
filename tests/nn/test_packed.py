"""nn/packed.py: one pass for map and GELU, and never a stale weight."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inkstone.models import bert
from inkstone.nn import compiled_product, packed
from inkstone.nn.linear import Linear, stacked
from inkstone.nn.packed import project

ROWS = 96
pytestmark = pytest.mark.skipif(
    not packed.supported(),
    reason="this processor's kernels do not take bf16",
)


def _linears(n: int, d_out: int = 48, *, bias: bool = True) -> list[Linear]:
    generator = torch.Generator().manual_seed(n)
    linears = [Linear(32, d_out, bias=bias).eval() for _ in range(n)]
    for p in (p for m in linears for p in m.parameters()):
        torch.nn.init.normal_(p, std=0.2, generator=generator)
    return linears


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "gelu"), [(1, False), (3, False), (1, True)])
def test_equals_the_maps_one_after_another(
    dtype: torch.dtype, bias: bool, n: int, gelu: bool
) -> None:
    linears = [m.to(dtype) for m in _linears(n, bias=bias)]
    x = _x(ROWS, 32)
    with torch.no_grad():
        found = project(x, linears, gelu=gelu)
        expected = torch.cat([m.float()(x.float()) for m in linears], -1)
        expected = F.gelu(expected) if gelu else expected
    assert linears[0] in packed._kept and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.03)


def test_a_changed_weight_is_seen() -> None:
    (linear,) = _linears(1)
    x = _x(ROWS, 32)
    with torch.no_grad():
        project(x, [linear])
        for p in linear.parameters():
            p.mul_(-2)
        torch.testing.assert_close(project(x, [linear]), linear(x), rtol=0.02, atol=0.03)
        for value in (1.0, 2.0, 3.0):  # the memory of one may be that of the one before
            linear.weight = torch.nn.Parameter(torch.full((48, 32), value))
            torch.testing.assert_close(project(x, [linear]), linear(x), rtol=0.02, atol=0.1)


def test_learning_uses_and_keeps_nothing() -> None:
    linears = _linears(2)
    x = _x(ROWS, 32).requires_grad_()
    y = project(x, linears)
    y.float().sum().backward()
    assert x.grad is not None and linears[1].weight.grad is not None
    assert linears[0] not in packed._kept
    with torch.no_grad():
        torch.testing.assert_close(project(_x(8, 32), linears), stacked(_x(8, 32), linears))
    assert linears[0] not in packed._kept  # few rows are not worth it

    config = bert.Config(vocab_size=50, d_model=32, n_layers=1, n_heads=2, d_ff=64)
    model = bert.Model(config).eval()
    model.compute_dtype = torch.bfloat16
    with torch.inference_mode():
        model(torch.arange(ROWS).remainder(50)[None])
    assert model.blocks[0].q in packed._kept  # type: ignore[operator]
    model.train()
    assert not any(m in packed._kept for m in model.modules() if isinstance(m, Linear))


@pytest.mark.parametrize("rows", [65, 255, 256, 600, 1024])
@torch.no_grad()
def test_a_part_in_runs_of_rows_is_the_part(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "WIDE", 48)
    monkeypatch.setattr(compiled_product, "fits", lambda d_in: False)  # it needs no runs
    up = _linears(1)[0]
    x, sizes = _x(rows, 32), []

    def part(run: torch.Tensor) -> torch.Tensor:
        sizes.append(len(run))
        return project(run, [up], gelu=True)

    torch.testing.assert_close(packed.in_runs(part, x, up), part(x), rtol=0.02, atol=0.03)
    assert sum(sizes[:-1]) == rows
    assert all(packed.RUN <= n < 2 * packed.RUN for n in sizes[:-1]) or rows < packed.RUN
    with torch.enable_grad():
        sizes.clear()
        packed.in_runs(part, x, up)
    assert sizes == [rows]
