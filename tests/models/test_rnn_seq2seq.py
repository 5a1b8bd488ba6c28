"""models/rnn_seq2seq.py against torch's recurrent cells and attention written out in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from inkstone.models import rnn_seq2seq as family

SHAPE = {"vocab_size": 31, "max_seq_len": 24, "d_model": 10, "hidden_size": 12, "dropout": 0.0}
CASES = [
    {"cell": cell, "n_layers": n, **attention}
    for cell in ("rnn", "gru", "lstm")
    for n in (1, 2)
    for attention in (
        {"attention": "additive"},
        {"attention": "general"},
        {"attention": "dot", "input_feeding": True},
    )
]
CELLS = {"rnn": nn.RNNCell, "gru": nn.GRUCell, "lstm": nn.LSTMCell}
NETWORKS = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def build(extra: dict[str, Any]) -> family.Model:
    torch.manual_seed(0)
    model = family.Model(family.Config(**{**SHAPE, **extra})).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def _copy(theirs: Any, suffix: str, cell: Any) -> None:
    """The weights of one of our cells into one of torch's, whose second bias an LSTM has too."""
    with torch.no_grad():
        getattr(theirs, f"weight_ih{suffix}").copy_(cell.x.weight)
        getattr(theirs, f"weight_hh{suffix}").copy_(cell.h.weight)
        getattr(theirs, f"bias_ih{suffix}").copy_(cell.x.bias)
        inner = getattr(theirs, f"bias_hh{suffix}")
        inner.copy_(torch.zeros_like(inner) if cell.h.bias is None else cell.h.bias)


def reference(model: family.Model, source: list[int], target: list[int]) -> tuple[Tensor, Tensor]:
    """Logits [T, V] and weights [T, S] of one pair, token by token, as the papers write them."""
    c = model.config
    half = c.hidden_size // 2
    encoder = NETWORKS[c.cell](c.d_model, half, c.n_layers, bidirectional=True)
    for layer in range(c.n_layers):
        _copy(encoder, f"_l{layer}", model.encoder.cells[2 * layer])
        _copy(encoder, f"_l{layer}_reverse", model.encoder.cells[2 * layer + 1])
    annotations, ends = encoder(model.embed.weight[source])
    ends = ends[0] if isinstance(ends, tuple) else ends
    cells = []
    for cell in model.decoder.cells:
        cells.append(CELLS[c.cell](cell.x.weight.shape[1], c.hidden_size))
        _copy(cells[-1], "", cell)
    states: list[Any] = []
    for layer, bridge in enumerate(model.bridge):
        h = torch.tanh(bridge.weight @ ends[2 * layer + 1] + bridge.bias)
        states.append((h, torch.zeros(c.hidden_size)) if c.cell == "lstm" else h)
    a, found, looks = model.attention, [], []

    def look(s: Tensor) -> Tensor:
        energies = []
        for h in annotations:
            if c.attention == "additive":
                inner = a.query.weight @ s + a.key.weight @ h + a.key.bias
                energies.append(sum(v * math.tanh(x) for v, x in zip(a.v, inner, strict=True)))
            else:
                energies.append(s @ (a.key.weight @ h if c.attention == "general" else h))
        looks.append(torch.softmax(torch.stack([torch.as_tensor(e) for e in energies]), 0))
        return sum(w * h for w, h in zip(looks[-1], annotations, strict=True))  # type: ignore

    last = torch.zeros(c.d_model)
    for token in target:
        x = model.embed.weight[token]
        if c.attention == "additive":
            top = states[-1][0] if c.cell == "lstm" else states[-1]
            context = look(top)
            x = torch.cat((x, context))
        elif c.input_feeding:
            x = torch.cat((x, last))
        for layer, cell in enumerate(cells):
            states[layer] = cell(x, states[layer])
            x = states[layer][0] if c.cell == "lstm" else states[layer]
        if c.attention != "additive":
            context = look(x)
        last = torch.tanh(model.combine.weight @ torch.cat((context, x)) + model.combine.bias)
        found.append(model.embed.weight @ last + model.word_bias)
    return torch.stack(found), torch.stack(looks)


@pytest.mark.parametrize("extra", CASES, ids=lambda e: "-".join(map(str, e.values())))
def test_equal_to_the_papers_written_out(extra: dict[str, Any]) -> None:
    model = build(extra)
    sources, targets = [[5, 9, 3, 30, 7], [4, 8], [2]], [[1, 6, 20], [1, 3, 3, 29], [1]]
    ids, mask = torch.zeros(3, 5, dtype=torch.long), torch.zeros(3, 5, dtype=torch.long)
    inputs, real = torch.zeros(3, 4, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long)
    for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
        side = slice(5 - len(source), 5) if i % 2 else slice(0, len(source))
        ids[i, side], mask[i, side] = torch.tensor(source), 1
        inputs[i, : len(target)], real[i, : len(target)] = torch.tensor(target), 1
    with torch.no_grad():
        found = model(ids, inputs, source_mask=mask, attention_mask=real)
        weights = model.align(ids, inputs, source_mask=mask)
        for i, (source, target) in enumerate(zip(sources, targets, strict=True)):
            logits, looks = reference(model, source, target)
            torch.testing.assert_close(found[i, : len(target)], logits, rtol=1e-4, atol=1e-5)
            seen = weights[i, : len(target)]
            torch.testing.assert_close(seen[:, mask[i].bool()], looks, rtol=1e-4, atol=1e-5)
            assert not seen[:, ~mask[i].bool()].any()


@pytest.mark.parametrize("extra", CASES, ids=lambda e: "-".join(map(str, e.values())))
def test_padding_of_the_target_changes_nothing(extra: dict[str, Any]) -> None:
    model = build(extra)
    source = torch.tensor([[5, 9, 3], [4, 8, 6]])
    target = torch.tensor([[1, 6, 20, 11], [1, 3, 2, 29]])
    memory = model.encode(source)
    whole = model.hidden(target, memory)
    padded = torch.tensor([[0, 0, 1, 6, 20, 11], [0, 1, 3, 2, 29, 0]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 0]])
    found = model.hidden(padded, memory, attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], whole.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_all_at_once_equals_token_by_token() -> None:
    model = build({"cell": "lstm", "attention": "general", "n_layers": 2})
    memory, target = model.encode(torch.tensor([[5, 9, 3]])), torch.tensor([[1, 6, 20, 11]])
    cache = model.new_cache(1, 4)
    found = model.hidden(target, memory, cache=cache)
    torch.testing.assert_close(found, model.hidden(target, memory), rtol=1e-4, atol=1e-5)
    assert cache.length == 4


def test_a_reversal_is_learnt_and_the_weights_show_it() -> None:
    """What must be copied from where is known, so the alignment is too."""
    torch.manual_seed(0)
    config = family.Config(**{**SHAPE, "hidden_size": 32, "d_model": 32, "cell": "gru"})
    model = family.Model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    for _ in range(250):
        source = torch.randint(3, 31, (32, 6), generator=generator)
        target = source.flip(1)
        inputs = torch.cat((torch.zeros(32, 1, dtype=torch.long), target[:, :-1]), 1)
        loss = nn.functional.cross_entropy(model(source, inputs).flatten(0, 1), target.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = model.eval().align(source, inputs)
    assert float(loss.detach()) < 0.1
    assert (weights.argmax(-1) == torch.arange(5, -1, -1)).float().mean() > 0.9


@pytest.mark.parametrize(
    "bad",
    [
        {"hidden_size": 13},
        {"attention": "additive", "input_feeding": True},
        {"attention": "concat"},
        {"cell": "sru"},
        {"start_id": 31},
        {"n_heads": 2},
        {"hidden_size": 2**31},
    ],
)
def test_impossible_shapes_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        family.Config(**{**SHAPE, **bad})


def test_flops_by_hand() -> None:
    config = family.Config(
        vocab_size=10, d_model=4, hidden_size=6, cell="lstm", attention="general",
        input_feeding=True, n_layers=2,
    )  # fmt: skip
    encoder = 2 * 12 * (4 + 3) + 2 * 12 * (6 + 3)  # two directions, four gates of 3
    decoder = 24 * (4 + 4 + 6) + 24 * (6 + 6)
    attention = 6 * 6 + 5 * 6 + 5 * 6  # W h, scores and the mean over 5 tokens
    head = 12 * 4 + 10 * 4
    assert family.flops_per_token(config, 5) == 2 * (encoder + decoder + attention + head)
