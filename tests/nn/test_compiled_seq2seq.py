"""An encoder–decoder read by compiled code, beside torch: the same states, the same beams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from inkstone.compression.quantize import choose, quantize_model
from inkstone.inference.beam import BeamConfig, Hypothesis, translate
from inkstone.models import bart, marian, pointer_generator, rnn_seq2seq, transformer
from inkstone.nn import compiled_seq2seq
from inkstone.nn.compiled_seq2seq import CompiledSeq2Seq

SHAPE = {"vocab_size": 200, "n_layers": 2, "max_seq_len": 96, "start_id": 2}
KINDS: dict[str, Callable[[], Any]] = {
    "pre-norm": lambda: transformer.Model(
        transformer.Config(**SHAPE, d_model=64, n_heads=4, d_ff=96, pre_norm=True)
    ),
    "post-norm": lambda: transformer.Model(
        transformer.Config(**SHAPE, d_model=64, n_heads=2, n_decoder_layers=1)
    ),
    "heads of 24": lambda: transformer.Model(
        transformer.Config(**SHAPE, d_model=96, n_heads=4, pre_norm=True)
    ),
    "marian": lambda: marian.Model(marian.Config(**SHAPE, d_model=64, n_heads=4)),
    "bart": lambda: bart.Model(bart.Config(**SHAPE, d_model=64, n_heads=4)),
}
LENGTHS = (33, 1, 16, 20, 5)


def network(kind: str) -> Any:
    """One whose answers differ from its inputs, as those of drawn weights hardly do."""
    torch.manual_seed(0)
    model = KINDS[kind]().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.1 * torch.randn_like(p))
            if name.endswith((".q.weight", ".down.weight", ".o.weight")):
                p.mul_(6)
    if not compiled_seq2seq.fits(model):
        pytest.skip("no compiler, or another kind of processor")
    return model


def sources() -> tuple[Tensor, Tensor]:
    ids = torch.randint(1, 200, (len(LENGTHS), max(LENGTHS)), generator=torch.manual_seed(1))
    return ids, torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]


def both(
    model: Any, config: BeamConfig, ends: set[int], monkeypatch: pytest.MonkeyPatch
) -> list[list[list[Hypothesis]]]:
    """By compiled code, and by torch."""
    ids, mask = sources()
    found = [translate(model, ids, mask, config, ends)]
    with monkeypatch.context() as patch:
        patch.setattr(compiled_seq2seq, "fits", lambda _: False)
        found.append(translate(model, ids, mask, config, ends))
    return found


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_the_same_states(kind: str) -> None:
    model = network(kind)
    ids, mask = sources()
    reader = CompiledSeq2Seq(model)
    writing, memory = reader.begin(ids, mask, 1, 40), model.encode(ids, source_mask=mask)
    written = torch.randint(1, 200, (len(LENGTHS), 40), generator=torch.manual_seed(2))
    wanted = model.scores(model.hidden(written, memory), memory)
    found = torch.stack([reader.scores(writing.step(written[:, i : i + 1])) for i in range(40)], 1)
    assert (found - wanted).abs().max() <= 2e-4 * wanted.abs().max()


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_same_beams(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(kind)
    config = BeamConfig(n_beams=4, max_tokens=60)
    endless, _ = both(model, config, set(), monkeypatch)
    written = [i for row in endless for best in row for i in best.ids]
    seldom = sorted(set(written), key=written.count)
    ends = set(seldom[: len(seldom) // 2])
    mine, theirs = both(model, config, ends, monkeypatch)
    assert len({len(row[0].ids) for row in theirs}) > 1, "texts end at different times"
    for one, other in zip(mine, theirs, strict=True):
        assert [h.ids for h in one] == [h.ids for h in other]
        assert [h.score for h in one] == pytest.approx([h.score for h in other], abs=1e-4)


@torch.no_grad()
def test_a_text_does_not_depend_on_the_others() -> None:
    model = network("pre-norm")
    ids, mask = sources()
    together = translate(model, ids, mask, BeamConfig(n_beams=3, max_tokens=40), {7})
    for row, length in enumerate(LENGTHS):
        alone = translate(
            model, ids[row : row + 1, :length], None, BeamConfig(n_beams=3, max_tokens=40), {7}
        )
        assert alone[0] == together[row]


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_whole_numbers(bits: int) -> None:
    model = network("pre-norm")
    small = quantize_model(model, choose(model, bits))
    exact = quantize_model(model, choose(model, bits))
    reader = compiled_seq2seq.reader(small)
    assert reader is not None and reader.weight_bytes < 0.4 * 4 * sum(
        p.numel() for p in model.parameters()
    )
    ids, mask = sources()
    written = torch.randint(1, 200, (len(LENGTHS), 20), generator=torch.manual_seed(2))
    memory = exact.encode(ids, source_mask=mask)
    wanted = exact.scores(exact.hidden(written, memory), memory)
    writing = reader.begin(ids, mask, 1, 40)
    found = torch.stack([reader.scores(writing.step(written[:, i : i + 1])) for i in range(20)], 1)
    assert (found - wanted).std() <= 0.05 * wanted.std()


def test_it_is_kept_until_the_weights_change() -> None:
    model = network("pre-norm")
    first = compiled_seq2seq.reader(model)
    assert first is not None and compiled_seq2seq.reader(model) is first
    with torch.no_grad():
        model.embed.weight.add_(1)
    assert compiled_seq2seq.reader(model) not in (None, first)
    assert compiled_seq2seq.reader(model.train()) is None


def test_what_is_not_of_the_kind() -> None:
    shape = {"vocab_size": 20, "n_layers": 1, "max_seq_len": 8}
    odd = transformer.Model(transformer.Config(**shape, d_model=40, n_heads=2)).eval()
    assert compiled_seq2seq.reader(odd) is None
    pointing = pointer_generator.Config(**shape, d_model=64, n_heads=2)
    assert compiled_seq2seq.reader(pointer_generator.Model(pointing).eval()) is None
    recurrent = rnn_seq2seq.Model(rnn_seq2seq.Config(vocab_size=20)).eval()
    assert compiled_seq2seq.reader(recurrent) is None
