"""compression/distill.py and student.py: what a student begins as, and what it learns by."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from inkstone.compression.distill import (
    PROJECTION,
    Config,
    LabelDistiller,
    WordDistiller,
    without_projection,
)
from inkstone.compression.student import smaller, with_head_of
from inkstone.corpora.batches import Batch
from inkstone.errors import ModelError, UsageError
from inkstone.models import bert, distilbert, gpt2, llama, modernbert
from inkstone.nn.loss import IGNORE_INDEX
from inkstone.tasks import classification, tagging
from inkstone.tasks._batch import TokenBatch


def _model(family: Any, seed: int = 0, **shape: Any) -> Any:
    torch.manual_seed(seed)
    shape = {
        "vocab_size": 50,
        "max_seq_len": 16,
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 4,
    } | shape
    return family.Model(family.Config(**shape)).eval()


def _kl(scores: torch.Tensor, wanted: torch.Tensor, temperature: float) -> torch.Tensor:
    """By torch's own loss."""
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (scores, wanted))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _words(model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.hidden(batch.input_ids), batch.targets


def _text() -> Batch:
    ids = torch.randint(50, (3, 13), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[0, :5] = IGNORE_INDEX
    return Batch(ids[:, :-1], targets)


@pytest.mark.parametrize("match", ["cosine", "mse"])
def test_the_loss_of_words_is_its_formula(match: Any) -> None:
    teacher, student = _model(gpt2), _model(gpt2, 1, n_layers=2)
    config, batch = Config(alpha=0.4, temperature=3.0, beta=0.5, match=match), _text()
    loss = WordDistiller(student, teacher, config, _words, bias=False)
    counted = batch.targets != IGNORE_INDEX
    ours, theirs = (m.hidden(batch.input_ids)[counted] for m in (student, teacher))
    scores, wanted = student.logits(ours), teacher.logits(theirs).detach()
    hard = F.cross_entropy(scores, batch.targets[counted], reduction="sum")
    apart = (1 - F.cosine_similarity(ours, theirs.detach())).sum()
    if match == "mse":
        apart = F.mse_loss(ours, theirs.detach(), reduction="none").mean(1).sum()
    total = 0.4 * hard + 0.6 * _kl(scores, wanted, 3.0) + 0.5 * apart
    found, count = loss(student, batch)
    assert count == int(counted.sum()) and torch.allclose(found, total, rtol=1e-4)
    weights = list(student.parameters())
    wanted_gradients = torch.autograd.grad(total, weights)
    for a, b in zip(torch.autograd.grad(found, weights), wanted_gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)
    assert all(p.grad is None for p in teacher.parameters())


def _labelled(task: str) -> tuple[Any, Any, TokenBatch]:
    """A task, its head and a batch with padding."""
    ids = torch.randint(50, (4, 8), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(8) < torch.tensor([8, 5, 7, 3])[:, None]
    if task == "tagging":
        targets = torch.randint(3, (4, 8)).masked_fill(~mask, IGNORE_INDEX)
        targets[:, 0] = IGNORE_INDEX
        return tagging.Task(tagging.Config(), "abc"), "token", TokenBatch(ids, targets, mask)
    several = task == "several"
    targets = torch.randint(3, (4,), generator=torch.Generator().manual_seed(3))
    if several:
        targets = F.one_hot(targets, 3).float()
    config = classification.Config(multi_label=several)
    return classification.Task(config, "abc"), "sequence", TokenBatch(ids, targets, mask)


@pytest.mark.parametrize("task", ["one", "several", "tagging"])
@pytest.mark.parametrize("family", [bert, modernbert])
def test_the_loss_of_labels_is_its_formula(family: Any, task: str) -> None:
    own, head, batch = _labelled(task)
    teacher = _model(family, head=head, n_labels=3)
    student = _model(family, 1, head=head, n_labels=3, n_layers=1)
    loss = LabelDistiller(
        student, teacher, Config(alpha=0.4, temperature=2.0, beta=0.0), own.loss,
        several=task == "several",
    )  # fmt: skip
    scores, wanted = student(**batch.inputs), teacher(**batch.inputs).detach()
    hard, targets = own.loss(student, batch)
    if task == "several":
        p, q = (wanted / 2).sigmoid(), (scores / 2).sigmoid()
        soft = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        soft = 4 * soft.mean(1).sum()
    else:
        counted = batch.targets != IGNORE_INDEX
        soft = _kl(scores[counted], wanted[counted], 2.0)
    found, count = loss(student, batch)
    assert count == targets and torch.allclose(found, 0.4 * hard + 0.6 * soft, rtol=1e-4)


@pytest.mark.parametrize("task", ["one", "tagging"])
def test_states_of_another_width_go_through_a_map_that_learns(task: str) -> None:
    own, head, batch = _labelled(task)
    teacher = _model(bert, head=head, n_labels=3)
    student = _model(bert, 1, head=head, n_labels=3, d_model=16, n_layers=1)
    names = set(student.state_dict())
    config = Config(alpha=0.0, temperature=1.0, beta=1.0)
    loss = LabelDistiller(student, teacher, config, own.loss, several=False)
    found, _ = loss(student, batch)
    plain, _ = LabelDistiller(
        student, teacher, Config(alpha=0.0, temperature=1.0, beta=0.0), own.loss, several=False
    )(student, batch)
    n_rows = len(batch) if task == "one" else batch.n_targets
    assert 0 < (found - plain).item() < 2 * n_rows  # of cosines
    found.backward()
    projection = student.get_submodule(PROJECTION)
    assert projection.weight.shape == (32, 16) and projection.weight.grad.abs().max() > 0
    assert any(p is projection.weight for p in student.param_groups()["matrix"])
    with without_projection(student):
        assert set(student.state_dict()) == names
    assert set(student.state_dict()) == names | {f"{PROJECTION}.weight"}


def test_a_student_begins_with_layers_of_its_teacher() -> None:
    teacher = _model(llama, n_layers=7, head_dim=6)
    student = smaller(teacher, {"n_layers": 3})
    for new, old in enumerate((0, 3, 6)):
        ours, theirs = student.blocks[new].state_dict(), teacher.blocks[old].state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert torch.equal(student.embed.weight, teacher.embed.weight)
    student.embed.weight.data.zero_()
    assert bool(teacher.embed.weight.any()) and student.config.head_dim == 6


def test_a_whole_copy_says_the_same() -> None:
    teacher = _model(gpt2)
    with torch.no_grad():
        ids = _text().input_ids
        assert torch.equal(smaller(teacher, {"dropout": 0.1}).eval()(ids), teacher(ids))


def test_what_follows_from_the_width_follows_it() -> None:
    config = smaller(_model(llama, d_ff=50), {"d_model": 16}).config
    assert (config.d_model, config.d_ff, config.head_dim) == (16, 64, 4)
    config = smaller(_model(llama, d_ff=50), {"n_heads": 2}).config
    assert (config.n_kv_heads, config.head_dim, config.d_ff) == (2, 16, 50)


@pytest.mark.parametrize(
    ("shape", "words"),
    [({"n_layer": 3}, "n_layers"), ({"vocab_size": 9}, "its teacher's"),
     ({"n_heads": 5}, "multiple"), ({"n_layers": 0}, "model.n_layers")],
)  # fmt: skip
def test_shapes_that_cannot_be(shape: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        smaller(_model(gpt2), shape)


def test_a_model_that_is_there_gets_the_head_of_its_teacher() -> None:
    teacher = _model(bert, head="sequence", n_labels=5)
    network = _model(distilbert, 1, n_token_types=0, n_layers=2)
    student = with_head_of(teacher, network)
    assert (student.config.head, student.config.n_labels) == ("sequence", 5)
    assert torch.equal(student.blocks[1].q.weight, network.blocks[1].q.weight)
    assert with_head_of(teacher, student) is student
    with pytest.raises(ModelError, match="words"):
        with_head_of(teacher, _model(bert, vocab_size=40))
    with pytest.raises(ModelError, match="kind causal"):
        with_head_of(teacher, _model(gpt2))


def test_a_student_nears_its_teacher() -> None:
    """By the teacher's word alone, without a right answer."""
    teacher = _model(gpt2, n_layers=1)
    with torch.no_grad():
        teacher.embed.weight.mul_(10)  # so that it is sure of what it says
    student = _model(gpt2, 1, n_layers=1, d_model=16)
    config = Config(alpha=0.0, temperature=2.0, beta=0.1)
    loss = WordDistiller(student, teacher, config, _words, bias=False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.01)
    seen = []
    for _ in range(60):
        total, count = loss(student, _text())
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        seen.append(total.item() / count)
    assert np.mean(seen[-3:]) < 0.5 * seen[0]
