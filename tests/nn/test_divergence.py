"""nn/divergence.py: the divergence of words in pieces is that of all scores at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inkstone.nn.divergence import Scored, chunked_divergence, divergence


def _reference(scores: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """By torch's own loss, on all scores."""
    log_q, log_p = ((x / temperature).log_softmax(-1) for x in (scores, wanted))
    return temperature**2 * F.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _pair(n: int, words: int, seed: int, bias: bool) -> tuple[Scored, Scored]:
    """A student of width 5 and a teacher of width 7."""
    chance = torch.Generator().manual_seed(seed)

    def scored(width: int) -> Scored:
        states, weight = (torch.randn(k, width, generator=chance) for k in (n, words))
        return Scored(states, weight, torch.randn(words, generator=chance) if bias else None)

    return scored(5), scored(7)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(0, 9), words=st.integers(2, 40), seed=st.integers(0, 1 << 20),
    temperature=st.sampled_from((0.5, 1.0, 2.0, 8.0)), chunk=st.integers(1, 10), bias=st.booleans(),
)  # fmt: skip
def test_value_and_gradients_are_those_of_the_whole(
    n: int, words: int, seed: int, temperature: float, chunk: int, bias: bool
) -> None:
    student, teacher = _pair(n, words, seed, bias)
    leaves = [x.requires_grad_() for x in student if x is not None]
    wanted = _reference(F.linear(*student), F.linear(*teacher), temperature)
    gradients = torch.autograd.grad(wanted, leaves)
    found = chunked_divergence(student, teacher, temperature, chunk=chunk)
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(torch.autograd.grad(3 * found, leaves), gradients, strict=True):
        assert torch.allclose(ours, 3 * theirs, rtol=1e-3, atol=1e-3)


def test_a_student_that_says_the_same_has_nothing_to_learn() -> None:
    _, teacher = _pair(6, 30, 0, bias=True)
    states = teacher.states.clone().requires_grad_()
    found = chunked_divergence(teacher._replace(states=states), teacher, 2.0)
    assert found.item() == pytest.approx(0, abs=1e-5)
    assert float(torch.autograd.grad(found, states)[0].abs().max()) < 1e-5


def test_nothing_of_the_teacher_learns() -> None:
    student, teacher = _pair(4, 10, 0, bias=False)
    leaves = [x.requires_grad_() for x in (*student[:2], *teacher[:2])]
    chunked_divergence(student, teacher, 2.0).backward()
    assert [x.grad is not None for x in leaves] == [True, True, False, False]


def test_gradients_can_be_taken_once() -> None:
    student, teacher = _pair(4, 10, 0, bias=False)
    student.states.requires_grad_()
    found = chunked_divergence(student, teacher, 2.0)
    found.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        found.backward()


def test_of_labels() -> None:
    scores, wanted = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    found = divergence(scores, wanted, 4.0)
    assert found.shape == (5,)
    assert torch.allclose(found.sum(), _reference(scores, wanted, 4.0), atol=1e-5)
