"""compression/quantize.py: which weights become whole numbers, and what a network says after."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from inkstone.compression.quantize import calibrate, choose, quantize_model
from inkstone.errors import ModelError, UsageError
from inkstone.models import bert, gpt2, llama, lstm
from inkstone.nn import native
from inkstone.nn.quantized import quantize, quantize_float8
from inkstone.nn.quantized_layers import QuantizedEmbedding, QuantizedLinear, n_weights

V = 96


def _model(family: Any, **shape: Any) -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": V, "max_seq_len": 64, "d_model": 64, "n_layers": 2} | shape
    return family.Model(family.Config(**shape)).eval()


MODELS = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "llama": (llama, {"n_heads": 4, "n_kv_heads": 2, "d_ff": 96, "tied_head": False}),
    "lstm": (lstm, {"hidden_size": 64}),
    "bert": (bert, {"n_heads": 4, "head": "sequence", "n_labels": 3}),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Any:
    family, shape = MODELS[request.param]
    return _model(family, **shape)


def _ids(rows: int = 4, length: int = 40) -> torch.Tensor:
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_rounded_network_says_nearly_the_same(model: Any, bits: int) -> None:
    choice = choose(model, bits)
    small = quantize_model(model, choice)
    kinds = [m for m in small.modules() if isinstance(m, QuantizedLinear | QuantizedEmbedding)]
    assert len(kinds) == len(choice.bits) > 2
    assert n_weights(small) == n_weights(model)
    with torch.no_grad():
        wanted, found = model(_ids()), small(_ids())
    off = (found - wanted).std() / wanted.std()
    assert off < (0.02 if bits == 8 else 0.3)
    assert off > 0


def test_it_is_the_network_of_the_rounded_weights(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda name: None)  # which rounds the inputs, too
    choice = choose(model, 4)
    small, twin = quantize_model(model, choice), copy.deepcopy(model)
    for name, bits in choice.bits.items():
        module = twin.get_submodule(name)
        module.weight.data.copy_(quantize(module.weight, bits).dequantize())
    with torch.no_grad():
        assert torch.allclose(twin(_ids()), small(_ids()), atol=1e-5)


def test_floats_of_eight_bits(model: Any) -> None:
    choice = choose(model, 8, floats=True)
    small, twin = quantize_model(model, choice), copy.deepcopy(model)
    for name in choice.bits:
        module = twin.get_submodule(name)
        module.weight.data.copy_(quantize_float8(module.weight).dequantize())
    with torch.no_grad():
        wanted, found, before = (m(_ids()) for m in (twin, small, model))
    assert torch.allclose(found, wanted, atol=1e-5)
    assert 0 < (found - before).std() / before.std() < 0.1
    assert n_weights(small) == n_weights(model)


def test_floats_need_no_groups() -> None:
    odd = _model(gpt2, d_model=40, n_heads=4, d_ff=64)
    assert "blocks.0.q" in choose(odd, 8, floats=True).bits


def test_one_model_has_one_kind_of_numbers() -> None:
    small = quantize_model(_model(gpt2, n_heads=4), choose(_model(gpt2, n_heads=4), 8))
    with pytest.raises(UsageError, match="one kind"):
        choose(small, 8, ["down"], floats=True)
    assert choose(small, 8, floats=True).bits  # rounded again


def test_what_is_said_last_keeps_its_bits(model: Any) -> None:
    choice = choose(model, 4)
    for name, bits in choice.bits.items():
        assert bits == (8 if name.rpartition(".")[2] in ("embed", "head") else 4)
    assert "classifier" not in choice.bits
    if hasattr(model, "position"):
        assert choice.kept["position"] == "a small table"


def test_parts_can_be_kept(model: Any) -> None:
    choice = choose(model, 8, ["embed"])
    assert choice.kept["embed"] == "asked for" and "embed" not in choice.bits
    with pytest.raises(UsageError, match="nothing is called 'emb'"):
        choose(model, 8, ["emb"])


def test_rows_that_do_not_divide_are_kept() -> None:
    odd = _model(gpt2, d_model=40, n_heads=4, d_ff=64)
    choice = choose(odd, 8)
    assert set(choice.bits) == {f"blocks.{i}.down" for i in range(2)}
    assert choice.kept["blocks.0.q"] == "rows of 40, which 32 does not divide"
    with pytest.raises(ModelError, match="no weights"):
        choose(_model(gpt2, d_model=40, n_heads=4, d_ff=40), 8)


@pytest.mark.parametrize("length", [3, 40])
def test_inputs_are_measured_where_they_go_in(length: int) -> None:
    """However a map is called: alone, with others of the same input, on few rows or on many."""
    model = _model(gpt2, n_heads=4)
    seen: dict[str, list[torch.Tensor]] = {}
    original = torch.nn.functional.linear
    weights = {
        m.weight.data_ptr(): n for n, m in model.named_modules() if n.endswith((".o", ".up"))
    }

    def spy(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
        if weight.data_ptr() in weights:
            seen.setdefault(weights[weight.data_ptr()], []).append(x.reshape(-1, x.shape[-1]))
        return original(x, weight, *rest)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(torch.nn.functional, "linear", spy)
        found = calibrate(lambda: (model(_ids(4, length)), model(_ids(2, length))), model)
    assert {f"blocks.{i}.{m}" for i in (0, 1) for m in ("q", "k", "v", "o", "up", "down")} == set(
        found
    )
    for name, parts in seen.items():
        assert torch.allclose(found[name], torch.cat(parts).square().mean(0), rtol=1e-4)
    assert torch.equal(found["blocks.0.q"], found["blocks.0.v"])


def test_rounding_by_the_inputs_helps_on_such_inputs() -> None:
    model = _model(gpt2, n_heads=4)
    with torch.no_grad():  # a few inputs are much larger than others, as in trained networks
        for block in model.blocks:
            block.mlp_norm.weight[::16] *= 8
        importance = calibrate(lambda: model(_ids(8, 60)), model)
        choice = choose(model, 4)
        plain, aware = quantize_model(model, choice), quantize_model(model, choice, importance)
        ids = torch.randint(V, (4, 60), generator=torch.Generator().manual_seed(9))
        x = model.blocks[1].mlp_norm(model.embed(ids, torch.float32))
        wanted = model.blocks[1].up(x)
        errors = [(small.blocks[1].up(x) - wanted).square().mean() for small in (plain, aware)]
    assert errors[1] < 0.8 * errors[0]
