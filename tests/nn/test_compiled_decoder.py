"""decoder.cpp: the scores that torch gives, whatever stands beside a text, in every format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from inkstone.compression.quantize import choose, quantize_model
from inkstone.models import gpt2, gpt3, llama, mixtral
from inkstone.nn import compiled_decoder, compiled_weights
from inkstone.nn.compiled_decoder import CompiledDecoder
from inkstone.nn.paged import Layout
from inkstone.nn.quantized import quantize

V = 77
SHAPES: dict[str, tuple[Any, dict[str, Any]]] = {
    "gpt2": (gpt2, {"n_heads": 4}),
    "gpt3": (gpt3, {"n_heads": 2, "band": 5}),
    "llama": (llama, {"n_heads": 4, "n_kv_heads": 2, "d_ff": 96, "qk_norm": True}),
    "window": (llama, {"n_heads": 4, "n_kv_heads": 1, "d_ff": 96, "sliding_window": 19}),
    "untied": (llama, {"n_heads": 2, "d_ff": 160, "tied_head": False}),
}
CLOSE = {"fp32": 2e-5, "bf16": 0.06, "int8": 0.1, "int4": 0.1}


def _model(name: str) -> Any:
    family, shape = SHAPES[name]
    torch.manual_seed(1)
    model = family.Model(
        family.Config(**{"vocab_size": V, "max_seq_len": 128, "d_model": 64, "n_layers": 3} | shape)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(3.0) if p.ndim == 2 else p.add_(0.1 * torch.randn_like(p))
    return model.eval()


@pytest.fixture(scope="module", params=list(SHAPES))
def model(request: pytest.FixtureRequest) -> Any:
    model = _model(request.param)
    if not compiled_decoder.fits(model):
        pytest.skip("no compiler, or a processor without AVX-512 BF16 and VNNI")
    return model


def _read(reader: CompiledDecoder, texts: list[list[int]], pieces: list[int]) -> list[Tensor]:
    """Scores of every token of some texts that are read side by side, so many tokens a pass."""
    cache, n_pages = reader.new_pages(len(texts), 20 * 16 * len(texts))
    order = torch.randperm(n_pages, generator=torch.Generator().manual_seed(0)).tolist()
    tables = [order[i * 20 : i * 20 + 20] for i in range(len(texts))]
    read = [0] * len(texts)
    found: list[list[Tensor]] = [[] for _ in texts]
    for n in pieces:
        if not (going := [i for i, text in enumerate(texts) if read[i] < len(text)]):
            break
        counts = [min(n, len(texts[i]) - read[i]) for i in going]
        cache.begin(
            Layout.of(
                [read[i] for i in going], counts, [tables[i] for i in going], [[] for _ in going],
                torch.device("cpu"),
            )
        )  # fmt: skip
        ids = [t for i, c in zip(going, counts, strict=True) for t in texts[i][read[i] :][:c]]
        with torch.inference_mode():
            scores = reader.logits(reader.hidden(torch.tensor([ids]), cache=cache)[0])
        for i, part in zip(going, scores.split(counts), strict=True):
            found[i].append(part)
            read[i] += len(part)
    return [torch.cat(parts) for parts in found]


def _texts(lengths: list[int]) -> list[list[int]]:
    chance = torch.Generator().manual_seed(3)
    return [torch.randint(V, (n,), generator=chance).tolist() for n in lengths]


TEXTS = _texts([1, 2, 15, 16, 17, 31, 50, 64])


@pytest.mark.parametrize("format_", list(CLOSE))
def test_scores_are_those_of_torch(model: Any, format_: str) -> None:
    """Whole numbers are compared with a network of the rounded weights, whose inputs are not
    rounded."""
    reader = CompiledDecoder(model, format_)
    twin = type(model)(model.config).eval()
    state, head = dict(model.state_dict()), model.head_weight
    if format_ in compiled_weights.BITS:
        bits = compiled_weights.BITS[format_]
        for name, weight in state.items():
            if name.startswith("blocks.") and weight.ndim == 2:
                state[name] = quantize(weight, bits).dequantize()
        head = quantize(head, bits).dequantize()
    twin.load_state_dict(state)
    for text, found in zip(TEXTS, _read(reader, TEXTS, [7] * 10), strict=True):
        with torch.no_grad():
            wanted = twin.hidden(torch.tensor([text]))[0] @ head.T
        off = (found - wanted).abs().max() / wanted.abs().max()
        assert off < CLOSE[format_]
        if format_ == "fp32":
            assert torch.allclose(found, wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("format_", list(CLOSE))
def test_to_the_bit_the_same_alone_and_among_others(model: Any, format_: str) -> None:
    reader = CompiledDecoder(model, format_)
    together = _read(reader, TEXTS, [1, 3, 4, 5, 13, 40])
    for text, found in zip(TEXTS, together, strict=True):
        assert torch.equal(_read(reader, [text], [64])[0], found)
        assert torch.equal(_read(reader, [text], [2] * 40)[0], found)


def test_floats_of_eight_bits_are_read_in_sixteen(model: Any) -> None:
    small = quantize_model(model, choose(model, 8, floats=True))
    reader = compiled_decoder.reader(small)
    assert reader is not None and reader.format == "bf16" and not reader.whole
    weights = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2)
    assert reader.weight_bytes < 3 * weights  # two each; rows in panels of 32
    for text, found in zip(TEXTS, _read(reader, TEXTS, [7] * 10), strict=True):
        with torch.no_grad():
            wanted = small(torch.tensor([text]))[0]
        assert (found - wanted).abs().max() / wanted.abs().max() < CLOSE["bf16"]


def test_threads_change_nothing(model: Any) -> None:
    reader = CompiledDecoder(model, "bf16")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = _read(reader, TEXTS, [9] * 10)
        torch.set_num_threads(3)
        for a, b in zip(alone, _read(reader, TEXTS, [9] * 10), strict=True):
            assert torch.equal(a, b)
    finally:
        torch.set_num_threads(before)


def test_a_reader_is_kept_until_the_weights_change(model: Any) -> None:
    first = compiled_decoder.reader(model)
    assert first is not None and compiled_decoder.reader(model) is first
    with torch.no_grad():
        model.norm.weight.add_(0.5)
    second = compiled_decoder.reader(model)
    assert second is not None and second is not first
    assert not torch.equal(_read(first, TEXTS[:1], [1])[0], _read(second, TEXTS[:1], [1])[0])
    model.train()
    assert compiled_decoder.reader(model) is None
    model.eval()


def test_other_shapes_are_left_to_torch() -> None:
    odd = gpt2.Model(gpt2.Config(vocab_size=V, d_model=40, n_layers=1, n_heads=5)).eval()
    assert compiled_decoder.reader(odd) is None
    shape = {"vocab_size": V, "d_model": 64, "n_layers": 1, "n_heads": 4, "d_ff": 96}
    assert compiled_decoder.reader(mixtral.Model(mixtral.Config(**shape)).eval()) is None
