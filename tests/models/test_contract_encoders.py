"""What every encoder and every encoder–decoder promises; a new file in models/ is tested, too."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.errors import ModelError
from inkstone.inference.beam import BeamConfig, translate
from inkstone.models._base import adopt
from inkstone.models._encoder import Encoder
from inkstone.nn.loss import chunked_cross_entropy

TINY = {"vocab_size": 61, "max_seq_len": 48, "d_model": 32, "n_layers": 2, "n_heads": 4}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "modernbert": [{"window": 4, "global_every": 2}, {"window": 6, "pooling": "cls"}],
    "bilstm": [{}, {"hidden_size": 24, "pooling": "max"}, {"pooling": "mean"}],
    "transformer": [{}, {"pre_norm": True, "activation": "gelu"}, {"positions": "learned"}],
    "marian": [{"start_id": 60}],
    "rnn_seq2seq": [
        {"hidden_size": 32},
        {"hidden_size": 24, "cell": "lstm", "attention": "general", "input_feeding": True},
        {"hidden_size": 32, "cell": "lstm", "attention": "dot"},
        {"hidden_size": 20, "cell": "rnn", "attention": "dot", "input_feeding": True},
    ],
    "t5": [{}, {"gated": True, "tied_head": False, "scaled_head": False, "head_dim": 4}],
}


def _families(kind: str) -> list[str]:
    names = registry.names("models")
    return [n for n in names if getattr(registry.load("models", n), "KIND", None) == kind]


def _tiny(family: ModuleType) -> dict[str, Any]:
    shape = {**TINY, "dropout": 0.0}
    return {k: v for k, v in shape.items() if k in family.Config.model_fields}


def _heads(family: ModuleType) -> tuple[Any, ...]:
    """Those that an encoder of the family can have."""
    return get_args(family.Config.model_fields["head"].annotation)


def _cases(kind: str) -> list[Any]:
    return [
        pytest.param(family, {**_tiny(family), **extra}, id=f"{name}-{i}")
        for name in _families(kind)
        for family in [registry.load("models", name)]
        for i, extra in enumerate(VARIANTS.get(name, [{}]))
    ]


def _build(family: ModuleType, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = family.Model(family.Config(**config))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def _ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=generator)


def _unequal(side: str) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    rows = [_ids(1, n, seed=n) for n in (3, 9, 1, 6)]
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = row.shape[1]
        place = slice(9 - n, 9) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = row[0], True
    return rows, ids, mask


encoders = pytest.mark.parametrize(("family", "config"), _cases("encoder"))
seq2seqs = pytest.mark.parametrize(("family", "config"), _cases("seq2seq"))
either = pytest.mark.parametrize(("family", "config"), _cases("encoder") + _cases("seq2seq"))
sides = pytest.mark.parametrize("side", ["left", "right"])


@encoders
@sides
@pytest.mark.parametrize("head", ["none", "sequence", "token"])
@torch.no_grad()
def test_padding_changes_nothing(
    family: ModuleType, config: dict[str, Any], side: str, head: str
) -> None:
    model = _build(family, {**config, "head": head, "n_labels": 3})
    rows, ids, mask = _unequal(side)
    together = model(ids, attention_mask=mask)
    for i, row in enumerate(rows):
        found = together[i] if head == "sequence" else together[i, mask[i]]
        torch.testing.assert_close(found, model(row)[0], rtol=1e-4, atol=1e-5)
    if head != "sequence":
        assert not together[~mask].any() or head == "token"


@encoders
@sides
def test_labels_of_texts_are_made_from_the_last_states(
    family: ModuleType, config: dict[str, Any], side: str
) -> None:
    model = _build(family, {**config, "head": "sequence"})
    if type(model).pooled is Encoder.pooled:
        pytest.skip("it reads its last states in another way")
    _, ids, mask = _unequal(side)
    weights = [p for name, p in model.named_parameters() if name.startswith("blocks")]
    found, expected = (
        (texts, *torch.autograd.grad(texts.square().sum(), weights))
        for texts in (
            model.text_states(ids, mask, None), model.pooled(*model.states(ids, mask, None))
        )
    )  # fmt: skip
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@encoders
@torch.no_grad()
def test_every_token_sees_both_ways(family: ModuleType, config: dict[str, Any]) -> None:
    model, ids = _build(family, {**config, "head": "none"}), _ids(1, 3)
    before = model(ids)
    for t in range(3):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % TINY["vocab_size"]
        assert (model(changed) - before).abs().amax(-1).min() > 1e-5


@encoders
@pytest.mark.parametrize("head", ["sequence", "token"])
def test_labels_are_learnt(family: ModuleType, config: dict[str, Any], head: str) -> None:
    torch.manual_seed(0)
    model = family.Model(family.Config(**{**config, "head": head, "n_labels": 3}))
    _, ids, mask = _unequal("right")
    labels = torch.tensor([0, 1, 2, 1]) if head == "sequence" else _ids(4, 9, seed=5) % 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(80):
        scores = model(ids, attention_mask=mask)
        loss = (
            F.cross_entropy(scores, labels)
            if head == "sequence"
            else F.cross_entropy(scores[mask], labels[mask])
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2


@encoders
def test_a_new_head_keeps_what_was_learnt(family: ModuleType, config: dict[str, Any]) -> None:
    old = _build(family, {**config, "head": "mlm"})
    new = _build(family, {**config, "head": "sequence"})
    fresh = adopt(new, old)
    assert fresh and all(name.startswith(("classifier", "pooler")) for name in fresh)
    assert torch.equal(new.embed.weight, old.embed.weight)
    ids = _ids(2, 5)
    assert torch.equal(new.hidden(ids), old.hidden(ids))


@seq2seqs
@sides
@torch.no_grad()
def test_a_padded_source_changes_nothing(
    family: ModuleType, config: dict[str, Any], side: str
) -> None:
    model = _build(family, config)
    rows, ids, mask = _unequal(side)
    target = _ids(4, 5, seed=8)
    together = model(ids, target, source_mask=mask)
    for i, row in enumerate(rows):
        alone = model(row, target[i : i + 1])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-5)


@seq2seqs
@torch.no_grad()
def test_the_decoder_does_not_look_ahead(family: ModuleType, config: dict[str, Any]) -> None:
    model, source, ids = _build(family, config), _ids(2, 7, seed=1), _ids(2, 8)
    before = model(source, ids)
    for t in range(1, 8):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % TINY["vocab_size"]
        after = model(source, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after[:, t], before[:, t], atol=1e-4)


@seq2seqs
@torch.no_grad()
def test_cached_equals_uncached(family: ModuleType, config: dict[str, Any]) -> None:
    model, target = _build(family, config), _ids(4, 9, seed=8)
    _, ids, mask = _unequal("right")
    memory = model.encode(ids, source_mask=mask)
    whole = model.hidden(target, memory)
    cache = model.new_cache(4, 9)
    pieces = [model.hidden(target[:, :4], memory, cache=cache)]
    pieces += [model.hidden(target[:, t : t + 1], memory, cache=cache) for t in range(4, 9)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-4, atol=1e-5)
    rows = torch.tensor([2, 0])
    cache.truncate(6)
    cache.reorder(rows)
    again = model.hidden(target[rows, 6:7], memory.reorder(rows), cache=cache)
    torch.testing.assert_close(again[:, 0], whole[rows, 6], rtol=1e-4, atol=1e-5)


@seq2seqs
def test_copying_is_learnt_and_beams_find_it(family: ModuleType, config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = family.Model(family.Config(**config))
    source = _ids(3, 4, seed=2) % 50 + 3
    end = torch.full((3, 1), 2)
    target = torch.cat((source, end), 1)
    start = torch.full((3, 1), model.config.start_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(source, torch.cat((start, source), 1))
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.02:
            break
    model.eval()
    for row, found in zip(
        target.tolist(), translate(model, source, None, BeamConfig(max_tokens=8), {2}), strict=True
    ):
        assert found[0].ids == row and found[0].finished


@either
def test_checkpointed_activations_give_the_same_gradients(
    family: ModuleType, config: dict[str, Any]
) -> None:
    model, ids = _build(family, config).train(), _ids(2, 10)
    inputs = (ids,) if family.KIND == "encoder" else (ids, ids)
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        out = model(*inputs)
        gradients.append(torch.autograd.grad(out.square().sum(), list(model.parameters())))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@either
@torch.no_grad()
def test_save_and_load(family: ModuleType, config: dict[str, Any], tmp_path: Path) -> None:
    model, ids = _build(family, config), _ids(1, 5)
    inputs = (ids,) if family.KIND == "encoder" else (ids, ids)
    save_model(tmp_path, model, None)
    loaded, _, _ = load_model(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config
    assert torch.equal(loaded(*inputs), model(*inputs))


@either
def test_bf16_activations_keep_fp32_parameters(family: ModuleType, config: dict[str, Any]) -> None:
    model, ids = _build(family, config), _ids(2, 10)
    inputs = (ids,) if family.KIND == "encoder" else (ids, ids)
    exact = model(*inputs)
    model.compute_dtype = torch.bfloat16
    low = model(*inputs)
    assert low.dtype == torch.bfloat16
    assert (low.float() - exact).abs().max() < 0.2 * exact.abs().max()
    low.float().square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32, name


@either
def test_no_kernel_reads_memory_that_was_never_written(
    family: ModuleType, config: dict[str, Any], unwritten_memory_is_nan: None
) -> None:
    """Kernels of AMX read a row of odd length to the end of a pair, whatever stands there."""
    model, ids = _build(family, config).train(), _ids(5, 35)
    mask = torch.ones_like(ids)
    mask[1, 20:] = mask[2, 1:] = 0
    model.compute_dtype = torch.bfloat16
    targets = ids
    if family.KIND == "seq2seq":
        memory = model.encode(ids, source_mask=mask)
        hidden = model.hidden(ids, memory, attention_mask=mask)
    elif type(model).prediction_states is Encoder.prediction_states:  # scores no words
        hidden = model.hidden(ids, attention_mask=mask)
    else:
        x, packing = model.states(ids, mask, None)
        hidden, targets = model.prediction_states(x), packing.pack(ids)
    if family.KIND == "encoder" and hidden.ndim == 3:
        weight, bias = torch.randn(TINY["vocab_size"], hidden.shape[-1]), None
    else:
        weight, bias = model.head_weight, model.head_bias
    total, _ = chunked_cross_entropy(hidden, weight, targets, bias=bias)
    gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in (total, *gradients) if g is not None)


@encoders
@pytest.mark.parametrize("head", ["sequence", "token", "span"])
def test_no_head_reads_memory_that_was_never_written(
    family: ModuleType, config: dict[str, Any], head: str, unwritten_memory_is_nan: None
) -> None:
    if head not in _heads(family):
        head = "sequence"
    model = _build(family, {**config, "head": head, "n_labels": 3}).train()
    model.compute_dtype = torch.bfloat16
    _, ids, mask = _unequal("left")
    model(ids.repeat(9, 1), attention_mask=mask.repeat(9, 1)).float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@either
def test_parameters_are_counted_and_grouped(family: ModuleType, config: dict[str, Any]) -> None:
    model = _build(family, config)
    everything = list(model.parameters())
    assert sum(p.numel() for p in everything) == family.count_parameters(model.config)
    groups = model.param_groups()
    assert sorted(id(p) for group in groups.values() for p in group) == sorted(map(id, everything))
    assert all(p.ndim == 2 for p in groups["matrix"])
    assert all(p.ndim == 1 for p in groups["vector"])


@encoders
def test_longer_than_the_context_is_a_named_error(
    family: ModuleType, config: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="49 tokens do not fit the model's context of 48"):
        _build(family, config)(_ids(1, 49))
