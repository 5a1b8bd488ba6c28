"""compression/structure.py: a network with fewer parts says what one with silent parts says."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from inkstone.checkpoint import load_model, save_model
from inkstone.compression.structure import (
    best_heads,
    best_layers,
    check_heads,
    check_layers,
    head_importance,
    spread,
    with_heads,
    with_layers,
)
from inkstone.corpora.batches import Batch
from inkstone.errors import ModelError, UsageError
from inkstone.models import bert, gpt2, gpt3, llama, lstm, modernbert, t5
from inkstone.tasks import language_modeling


def _model(family: Any, **shape: Any) -> Any:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "max_seq_len": 16, "d_model": 32, "n_heads": 4} | shape
    model = family.Model(family.Config(**shape)).eval()
    with torch.no_grad():  # so that every part matters
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


def _ids() -> torch.Tensor:
    return torch.randint(50, (3, 16), generator=torch.Generator().manual_seed(1))


LAYERED = {
    "gpt2": (gpt2, {"n_layers": 4}, [0, 1, 3]),
    "gpt3": (gpt3, {"n_layers": 4, "band": 4}, [0, 1]),
    "llama": (llama, {"n_layers": 4}, [0, 2]),
    "modernbert": (modernbert, {"n_layers": 6, "global_every": 2, "window": 4}, [0, 1, 4, 5]),
}


@pytest.mark.parametrize("name", list(LAYERED))
def test_fewer_layers_are_layers_that_pass_on(name: str, tmp_path: Any) -> None:
    """In a pre-norm network a layer without its two output maps adds nothing."""
    family, shape, kept = LAYERED[name]
    model = _model(family, **shape)
    small, silent = with_layers(model, kept), copy.deepcopy(model)
    with torch.no_grad():
        for number, block in enumerate(silent.blocks):
            if number not in kept:
                for linear in (block.o, block.down):
                    for p in linear.parameters():
                        p.zero_()
        assert torch.allclose(small(_ids()), silent(_ids()), atol=1e-5)
        assert not torch.allclose(small(_ids()), model(_ids()), atol=1e-2)
    assert small.config.n_layers == len(kept)
    save_model(tmp_path, small, None)
    opened, _, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(opened(_ids()), small(_ids()))


def test_fewer_layers_of_a_post_norm_network() -> None:
    model = _model(bert, n_layers=3, head="sequence")
    small, by_hand = with_layers(model, [0, 2]), copy.deepcopy(model)
    del by_hand.blocks[1]
    with torch.no_grad():
        assert torch.equal(small(_ids()), by_hand(_ids()))


HEADED = {"multi-head": {}, "grouped": {"n_kv_heads": 2}, "with norms": {"qk_norm": True}}


@pytest.mark.parametrize("name", list(HEADED))
def test_fewer_heads_are_heads_that_say_nothing(name: str, tmp_path: Any) -> None:
    model = _model(llama, n_layers=2, **HEADED[name])
    c = model.config
    kept = [[0], [1]] if c.n_kv_heads == 2 else [[0, 3], [1, 2]]
    small, silent = with_heads(model, kept), copy.deepcopy(model)
    width = c.head_dim * c.n_heads // c.n_kv_heads
    with torch.no_grad():
        for block, numbers in zip(silent.blocks, kept, strict=True):
            for head in set(range(c.n_kv_heads)) - set(numbers):
                block.o.weight[:, head * width : (head + 1) * width] = 0
        assert torch.allclose(small(_ids()), silent(_ids()), atol=1e-5)
        assert not torch.allclose(small(_ids()), model(_ids()), atol=1e-2)
    assert (small.config.n_heads, small.config.head_dim) == (2, c.head_dim)
    save_model(tmp_path, small, None)
    opened, _, _ = load_model(tmp_path)
    with torch.no_grad():
        assert torch.equal(opened(_ids()), small(_ids()))


def test_transformers_opens_a_model_with_fewer_heads(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    small = with_heads(_model(llama, n_layers=2), [[0, 2], [1, 3]])
    save_model(tmp_path, small, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(_ids()).logits, small(_ids()), atol=1e-5)


def _batches() -> list[Batch]:
    return [Batch(row[None, :-1], row[None, 1:]) for row in _ids()]


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_importance_is_the_slope_of_a_factor_of_each_head(n_kv_heads: int) -> None:
    """|∂L/∂ξ| by finite differences of a factor before the output map (Michel et al., eq. 2)."""
    model = _model(llama, n_layers=2, n_kv_heads=n_kv_heads)
    found = head_importance(model, language_modeling.loss, _batches())
    width = 32 // n_kv_heads

    def nats(batch: Batch, layer: int, head: int, factor: float) -> float:
        twin = copy.deepcopy(model)
        with torch.no_grad():
            twin.blocks[layer].o.weight[:, head * width : (head + 1) * width] *= factor
            scores = twin(batch.input_ids)
        return float(F.cross_entropy(scores.flatten(0, 1), batch.targets.flatten()))

    for layer in range(2):
        for head in range(n_kv_heads):
            slopes = [
                (nats(b, layer, head, 1.02) - nats(b, layer, head, 0.98)) / 0.04 for b in _batches()
            ]
            assert float(found[layer, head]) == pytest.approx(sum(map(abs, slopes)), rel=0.05)


def test_the_heads_that_matter_stay() -> None:
    importance = torch.tensor([[3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert best_heads(importance, 0.5) == [[0, 2], [2, 3]]
    with pytest.raises(UsageError, match="none of 4 heads"):
        best_heads(importance, 0.1)
    with pytest.raises(UsageError, match="all of 4 heads"):
        best_heads(importance, 0.9)


def test_a_layer_that_does_nothing_goes_first() -> None:
    model = _model(gpt2, n_layers=4)
    with torch.no_grad():
        for p in (*model.blocks[2].o.parameters(), *model.blocks[2].down.parameters()):
            p.zero_()
        wanted = model(_ids())
        told: list[tuple[int, int]] = []

        def loss(network: Any) -> float:
            return float((network(_ids()) - wanted).square().mean())

        kept = best_layers(model, loss, 0.25, lambda done, of: told.append((done, of)))
        assert kept == [0, 1, 3] and told[-1] == (3, 3)
        kept = best_layers(model, loss, 0.5)
    assert len(kept) == 2 and kept[0] == 0 and 2 not in kept


def test_layers_that_take_turns_go_in_rounds() -> None:
    model = _model(modernbert, n_layers=6, global_every=2)
    assert best_layers(model, lambda network: 0.0, 0.4) == [0, 1, 4, 5]
    model = _model(gpt3, n_layers=4, band=4)
    assert model.period == 2 and _model(gpt3, n_layers=4, band=None).period == 1


def test_families_that_cannot() -> None:
    with pytest.raises(ModelError, match="wider"):
        check_heads(_model(gpt2, n_layers=2))
    with pytest.raises(ModelError, match="no single stack"):
        check_layers(_model(t5, n_layers=2, head_dim=8, max_distance=32))
    with pytest.raises(ModelError, match="no single stack"):
        check_layers(lstm.Model(lstm.Config(vocab_size=9, d_model=8, hidden_size=8)))


def test_a_student_takes_every_other_layer() -> None:
    assert spread(6, 12) == [0, 2, 4, 7, 9, 11]  # as DistilBERT's was made
    assert spread(1, 4) == [0] and spread(4, 4) == [0, 1, 2, 3]


@given(st.integers(1, 12), st.integers(1, 24), st.integers(1, 4))
def test_every_layer_is_taken_from_one_of_its_kind(n_layers: int, of: int, period: int) -> None:
    if n_layers <= of:
        found = spread(n_layers, of, period)
        assert len(set(found)) == n_layers and found == sorted(found)
        assert all(0 <= x < of and x % period == i % period for i, x in enumerate(found))
