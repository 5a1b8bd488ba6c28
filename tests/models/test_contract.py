"""What every causal family promises; a new file in models/ is tested by being there."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from inkstone import registry
from inkstone.checkpoint import load_model, save_model
from inkstone.errors import ModelError
from inkstone.nn.loss import chunked_cross_entropy
from inkstone.nn.paged import Layout

TINY = {"vocab_size": 61, "max_seq_len": 48, "d_model": 32, "n_layers": 2, "n_heads": 4}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "llama": [
        {},
        {"n_kv_heads": 2, "tied_head": False},
        {"n_kv_heads": 1, "head_dim": 16, "qk_norm": True},
        {"n_kv_heads": 2, "sliding_window": 4},
    ],
    "gpt3": [{}, {"band": 3}, {"band": None}],
    "lstm": [{}, {"hidden_size": 48}, {"hidden_size": 24, "tied_head": False}],
    "lamda": [{}, {"n_buckets": 8, "max_distance": 12, "head_dim": 16}],
    "mixtral": [{"n_experts": 3}, {"n_experts": 4, "n_experts_used": 1, "sliding_window": 5}],
}
SLOW = ("lstm", "gru")  # gates open slowly: more and larger steps to learn one batch by heart


def _cases() -> list[Any]:
    cases = []
    for name in registry.names("models"):
        family = registry.load("models", name)
        if getattr(family, "KIND", None) != "causal":
            continue
        for i, extra in enumerate(VARIANTS.get(name, [{}])):
            tiny = {k: v for k, v in TINY.items() if k in family.Config.model_fields}
            cases.append(pytest.param(family, {**tiny, **extra}, id=f"{name}-{i}"))
    return cases


def _build(family: ModuleType, config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = family.Model(family.Config(**config))
    with torch.no_grad():  # far from the initial state, where much is zero or one
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()


def _ids(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=generator)


causal = pytest.mark.parametrize(("family", "config"), _cases())


@causal
@torch.no_grad()
def test_no_look_into_the_future(family: ModuleType, config: dict[str, Any]) -> None:
    model, ids = _build(family, config), _ids(2, 12)
    before = model(ids)
    for t in range(1, 12):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 1) % TINY["vocab_size"]
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t]) or torch.allclose(
            after[:, :t], before[:, :t], atol=1e-6
        )
        assert not torch.allclose(after[:, t], before[:, t], atol=1e-4)


@causal
@torch.no_grad()
@pytest.mark.parametrize("prefill", [1, 5])
def test_cached_equals_uncached(family: ModuleType, config: dict[str, Any], prefill: int) -> None:
    model, ids = _build(family, config), _ids(3, 14)
    cache = model.new_cache(3, 14)
    pieces = [model(ids[:, :prefill], cache=cache)]
    pieces.append(model(ids[:, prefill : prefill + 3], cache=cache))  # several at once
    pieces += [model(ids[:, t : t + 1], cache=cache) for t in range(prefill + 3, 14)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-4, atol=1e-5)
    cache.truncate(6)
    again = model(ids[:, 6:9], cache=cache)
    torch.testing.assert_close(again, model(ids)[:, 6:9], rtol=1e-4, atol=1e-5)


@causal
@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(
    family: ModuleType, config: dict[str, Any], side: str
) -> None:
    model, rows = _build(family, config), [_ids(1, n, seed=n) for n in (3, 9, 1, 6)]
    ids, mask = torch.zeros(4, 9, dtype=torch.long), torch.zeros(4, 9, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = row.shape[1]
        place = slice(9 - n, 9) if side == "left" else slice(0, n)
        ids[i, place], mask[i, place] = row[0], True
    together = model(ids, attention_mask=mask)
    for i, row in enumerate(rows):
        torch.testing.assert_close(together[i, mask[i]], model(row)[0], rtol=1e-4, atol=1e-5)


@causal
@torch.no_grad()
def test_cached_decoding_of_left_padded_rows(family: ModuleType, config: dict[str, Any]) -> None:
    model, rows = _build(family, config), [_ids(1, n, seed=n) for n in (2, 7, 5)]
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, 7 - row.shape[1] :], mask[i, 7 - row.shape[1] :] = row[0], True
    cache = model.new_cache(3, 12)
    logits = model(ids, attention_mask=mask, cache=cache)[:, -1:]
    for _ in range(5):
        new = logits.argmax(-1)
        rows = [torch.cat([row, new[i : i + 1]], 1) for i, row in enumerate(rows)]
        logits = model(new, cache=cache)
        for i, row in enumerate(rows):
            torch.testing.assert_close(logits[i, 0], model(row)[0, -1], rtol=1e-4, atol=1e-5)
    assert cache.lengths.tolist() == [row.shape[1] for row in rows]


@causal
@torch.no_grad()
def test_texts_side_by_side_in_pages(family: ModuleType, config: dict[str, Any]) -> None:
    """Texts of unlike lengths, read in pieces and out of order of their pages."""
    model, texts = _build(family, config), [_ids(1, n, seed=n)[0].tolist() for n in (40, 3, 19)]
    cache, n_pages = model.new_pages(8, 8 * 48)
    size = cache.page_size
    free = iter(range(n_pages - 1, -1, -1))
    pages: list[list[int]] = [[], [], []]
    read = [0, 0, 0]
    for counts in ((17, 1, 0), (1, 1, 5), (0, 1, 1), (22, 0, 13)):
        going = [row for row, n in enumerate(counts) if n]
        for row in going:
            while len(pages[row]) * size < read[row] + counts[row]:
                pages[row].append(next(free))
        new = [texts[row][read[row] : read[row] + counts[row]] for row in going]
        before = [texts[row][: read[row]] for row in going]
        cache.begin(
            Layout.of(
                [read[row] for row in going], [counts[row] for row in going],
                [pages[row] for row in going], before, torch.device("cpu"),
            )
        )  # fmt: skip
        together = model(torch.tensor([[i for ids in new for i in ids]]), cache=cache)[0]
        for row, part in zip(going, together.split([counts[r] for r in going]), strict=True):
            read[row] += counts[row]
            alone = model(torch.tensor([texts[row][: read[row]]]))[0, -counts[row] :]
            torch.testing.assert_close(part, alone, rtol=1e-4, atol=1e-5)
    assert read == [40, 3, 19]


@causal
@torch.no_grad()
def test_reordered_cache_continues_the_chosen_rows(
    family: ModuleType, config: dict[str, Any]
) -> None:
    model, ids = _build(family, config), _ids(3, 6)
    cache = model.new_cache(3, 8)
    model(ids, cache=cache)
    cache.reorder(torch.tensor([2, 2, 0]))
    new = _ids(3, 1, seed=9)
    chosen = torch.cat([ids[[2, 2, 0]], new], 1)
    torch.testing.assert_close(
        model(new, cache=cache)[:, 0], model(chosen)[:, -1], rtol=1e-4, atol=1e-5
    )


@causal
@torch.no_grad()
def test_documents_in_one_row_do_not_see_each_other(
    family: ModuleType, config: dict[str, Any]
) -> None:
    model, parts = _build(family, config), [_ids(1, n, seed=n) for n in (4, 1, 7)]
    packed = torch.cat(parts, 1)
    segments = torch.tensor([[0] * 4 + [1] * 1 + [2] * 7])
    together = model(packed, segment_ids=segments)
    alone = torch.cat([model(part) for part in parts], 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@causal
def test_overfits_one_batch(family: ModuleType, config: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = family.Model(family.Config(**config))
    ids = _ids(4, 16)
    slow = family.__name__.rsplit(".", 1)[-1] in SLOW
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-2 if slow else 1e-2)
    for _ in range(150 if slow else 60):
        hidden = model.hidden(ids[:, :-1])
        total, count = chunked_cross_entropy(hidden, model.head_weight, ids[:, 1:])
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        if float(total.detach()) / count < 0.2:
            break
    assert float(total.detach()) / count < 0.2


@causal
def test_bf16_activations_keep_fp32_parameters(family: ModuleType, config: dict[str, Any]) -> None:
    model, ids = _build(family, config), _ids(2, 10)
    exact = model(ids)
    model.compute_dtype = torch.bfloat16
    hidden = model.hidden(ids)
    assert hidden.dtype == torch.bfloat16
    assert (model.logits(hidden).float() - exact).abs().max() < 0.15 * exact.abs().max()
    total, count = chunked_cross_entropy(hidden[:, :-1], model.head_weight, ids[:, 1:])
    (total / count).backward()
    for name, p in model.named_parameters():
        assert p.dtype == torch.float32, name
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.any(), name


@causal
@pytest.mark.parametrize("length", [35, 48])
def test_no_kernel_reads_memory_that_was_never_written(
    family: ModuleType, config: dict[str, Any], length: int, unwritten_memory_is_nan: None
) -> None:
    """Kernels of AMX read a row of odd length to the end of a pair, whatever stands there."""
    model, ids = _build(family, config).train(), _ids(3, length)
    model.compute_dtype = torch.bfloat16
    targets = torch.where(ids < 3, -100, ids)
    for chunk in (None, 37):
        hidden = model.hidden(ids)
        total, _ = chunked_cross_entropy(hidden, model.head_weight, targets, chunk=chunk)
        gradients = torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
        assert all(g.isfinite().all() for g in (total, *gradients) if g is not None)
    with torch.no_grad():
        cache = model.eval().new_cache(3, 48)
        for new in (ids[:, :31], ids[:, 31:32]):
            assert model(new, cache=cache).isfinite().all()


@causal
def test_checkpointed_activations_give_the_same_gradients(
    family: ModuleType, config: dict[str, Any]
) -> None:
    model, ids = _build(family, config).train(), _ids(2, 10)
    gradients = []
    for recompute in (False, True):
        model.activation_checkpointing = recompute
        total, _ = chunked_cross_entropy(model.hidden(ids), model.head_weight, ids)
        gradients.append(torch.autograd.grad(total, list(model.parameters())))
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)


@causal
@torch.no_grad()
def test_save_and_load(family: ModuleType, config: dict[str, Any], tmp_path: Path) -> None:
    model, ids = _build(family, config), _ids(1, 5)
    save_model(tmp_path, model, None, info={"note": "x"})
    loaded, tokenizer, info = load_model(tmp_path)
    assert loaded.config == model.config and tokenizer is None and info["note"] == "x"
    assert torch.equal(loaded(ids), model(ids))
    again = dict(loaded.named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in model.named_parameters())


@causal
def test_parameters_are_counted_and_grouped(family: ModuleType, config: dict[str, Any]) -> None:
    model = _build(family, config)
    everything = list(model.parameters())
    assert sum(p.numel() for p in everything) == family.count_parameters(model.config)
    groups = model.param_groups()
    assert set(groups) == {"matrix", "embedding", "head", "vector"}
    grouped = [id(p) for group in groups.values() for p in group]
    assert sorted(grouped) == sorted(map(id, everything))
    assert all(p.ndim == 2 for p in groups["matrix"])
    assert all(p.ndim == 1 for p in groups["vector"])


@causal
def test_the_same_seed_gives_the_same_weights(family: ModuleType, config: dict[str, Any]) -> None:
    left, right = _build(family, config), _build(family, config)
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        assert torch.equal(a, b)


@causal
def test_longer_than_the_context_is_a_named_error(
    family: ModuleType, config: dict[str, Any]
) -> None:
    with pytest.raises(ModelError, match="49 tokens do not fit the model's context of 48"):
        _build(family, config)(_ids(1, 49))
