"""nn/quantized_layers.py: maps and tables of whole numbers beside those of the same floats."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from inkstone.nn import native
from inkstone.nn.linear import Embedding, Linear, stacked
from inkstone.nn.packed import project
from inkstone.nn.quantized import quantize
from inkstone.nn.quantized_layers import QuantizedEmbedding, QuantizedLinear, n_weights, put

compiled = pytest.mark.skipif(
    native.library("panels") is None,
    reason="no compiler, or a processor without AVX-512 BF16 and VNNI",
)


def _maps(bits: int, *, bias: bool = True) -> list[QuantizedLinear]:
    torch.manual_seed(0)
    maps = [Linear(96, 70, bias=bias), Linear(96, 33, bias=bias)]
    for m in maps:
        for p in m.parameters():
            torch.nn.init.normal_(p, 0.0, 0.1)
    return [QuantizedLinear(quantize(m.weight, bits), m) for m in maps]


def _floats(x: torch.Tensor, maps: list[QuantizedLinear]) -> torch.Tensor:
    return torch.cat([F.linear(x, m.weight, m.bias) for m in maps], -1)


@compiled
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_compiled_products(bits: int, dtype: torch.dtype, bias: bool) -> None:
    maps = _maps(bits, bias=bias)
    for n in (1, 2, 7, 13, 64, 65, 400, 900):
        x = torch.randn(n, 96, generator=torch.Generator().manual_seed(n))
        wanted = _floats(x, maps)
        found = stacked(x.to(dtype), maps)
        assert found.dtype == dtype
        off = (found.float() - wanted).abs().max() / wanted.abs().max()
        assert off < (0.01 if dtype == torch.float32 else 0.015)
        assert torch.equal(maps[0](x.to(dtype)), found[:, :70])
        bent = project(x.to(dtype), maps, gelu=True)
        off = (bent.float() - F.gelu(found.float())).abs().max()
        assert off < (1e-5 if dtype == torch.float32 else 0.05)
        rows = [stacked(row[None], maps)[0] for row in x[:3].to(dtype)]
        assert torch.equal(torch.stack(rows), found[:3])  # whatever stands beside


@compiled
@torch.no_grad()
def test_any_shape_and_any_stride() -> None:
    (m, _) = _maps(8)
    x = torch.randn(3, 5, 192)[..., ::2]
    assert torch.equal(m(x), m(x.contiguous())) and m(x).shape == (3, 5, 70)
    assert m(x[:0]).shape == (0, 5, 70)
    assert torch.equal(m(torch.zeros(2, 96)), m.bias.expand(2, 70))  # type: ignore[union-attr]


@pytest.mark.parametrize("bits", [8, 4])
def test_without_compiled_code_it_is_the_map_of_the_floats(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)
    maps = _maps(bits)
    x = torch.randn(80, 96)
    with torch.no_grad():
        assert torch.allclose(stacked(x, maps), _floats(x, maps), atol=1e-6)
        assert torch.allclose(project(x, maps, gelu=True), F.gelu(_floats(x, maps)), atol=1e-6)
        assert torch.allclose(maps[0](x[:2]), _floats(x[:2], maps[:1]), atol=1e-6)


def test_a_gradient_is_of_the_floats() -> None:
    """What is learned through such a map, an input or an adapter, learns by what it stands for."""
    maps = _maps(8)
    x = torch.randn(4, 96, requires_grad=True)
    stacked(x, maps).sum().backward()
    wanted = sum(m.weight.sum(0) for m in maps)
    assert x.grad is not None and torch.allclose(x.grad[0], wanted, atol=1e-5)


def test_tables_give_their_rows() -> None:
    table = Embedding(50, 64)
    torch.nn.init.normal_(table.weight)
    rounded = QuantizedEmbedding(quantize(table.weight, 8))
    ids = torch.randint(50, (3, 7))
    found = rounded(ids, torch.float32)
    assert torch.equal(found, rounded.weight[ids])
    assert (found - table.weight[ids]).abs().max() < 0.03
    assert rounded(ids, torch.bfloat16).dtype == torch.bfloat16


def test_in_a_network() -> None:
    network = torch.nn.ModuleDict({"words": Embedding(8, 32), "up": Linear(32, 5, bias=True)})
    for p in network.parameters():
        torch.nn.init.normal_(p)
    before = n_weights(network)
    for name in ("words", "up"):
        put(network, name, quantize(network.get_submodule(name).weight, 8))  # type: ignore[arg-type]
    assert n_weights(network) == before == 8 * 32 + 5 * 32 + 5
    assert set(network.state_dict()) == {
        "words.codes", "words.scales", "up.bias", "up.codes", "up.scales"
    }  # fmt: skip
    with torch.no_grad():
        x = torch.randn(2, 32)
        assert torch.equal(copy.deepcopy(network)["up"](x), network["up"](x))
