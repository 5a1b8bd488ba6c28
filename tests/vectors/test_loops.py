"""vectors/plain.py and compiled.py: both equal a textbook's gradient descent, word by word."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from inkstone.vectors import compiled, plain
from inkstone.vectors.vocabulary import BREAK, UNKNOWN, Vocabulary

D, V, LR, STATE = 5, 1000, 0.3, 88172645463325252
SEEN = 9  # words of the text; noise comes from all
needs_numba = pytest.mark.skipif(not compiled.available(), reason="needs the extra `vectors`")
LOOPS = ["plain", pytest.param("compiled", marks=needs_numba)]
Run = Callable[..., tuple[float, int, int]]


def rows() -> np.ndarray:
    """Texts of all lengths with unknown words: one word, none, many."""
    stream = np.random.default_rng(1).integers(UNKNOWN, SEEN, 60).astype(np.int32)
    stream[[0, 7, 8, 10, 31]] = BREAK
    return stream


def vocabulary() -> Vocabulary:
    return Vocabulary(tuple(f"w{n}" for n in range(V)), 5000 // np.arange(1, V + 1))


def groups(subwords: bool) -> list[list[int]]:
    return [[w, V + w % 3, V + 3 + w % 2] if subwords else [w] for w in range(V)]


class Textbook:
    """Gradient descent on equations 3 and 4 as autograd sees them, in double precision."""

    def __init__(self, arrays: list[np.ndarray], *, cbow: bool, hierarchical: bool) -> None:
        self.inputs, self.output = (torch.tensor(a, dtype=torch.float64) for a in arrays)
        self.cbow, self.hierarchical, self.state = cbow, hierarchical, STATE
        self.words, self.losses, self.kept = vocabulary(), list[float](), 0
        self.table = self.words.noise(0.0)
        self.tree = self.words.huffman()

    def number(self) -> int:
        x = self.state
        x = (x ^ (x << 13)) % 2**64
        x = x ^ (x >> 7)
        self.state = (x ^ (x << 17)) % 2**64
        return self.state

    def noise(self) -> int:
        x = self.number()
        entry = int(self.table[(x >> 32) * V // 2**32])
        own, other = divmod(entry, 2**32)
        return (x >> 32) * V // 2**32 if x % 2**32 < own else other

    def predict(self, h: torch.Tensor, word: int, look: bool) -> torch.Tensor:
        """Steps of h [M, D], each row of which predicts the word."""
        if self.hierarchical:
            tree = self.tree
            path = slice(int(tree.starts[word]), int(tree.starts[word + 1]))
            which = tree.nodes[path].tolist()
            signs = [1 - 2 * int(bit) for bit in tree.bits[path]]
        else:
            drawn = [x for _ in range(3) if (x := self.noise()) != word]
            which, signs = [word, *drawn], [1, *[-1] * len(drawn)]
        assert len(set(which)) == len(which), "a word twice: choose another STATE"
        h, out = h.clone().requires_grad_(), self.output[which].clone().requires_grad_()
        losses = -torch.nn.functional.logsigmoid(torch.tensor(signs) * (h @ out.T)).sum(1)
        losses.sum().backward()
        assert out.grad is not None and h.grad is not None
        self.output[which] -= LR * out.grad
        if look:
            self.losses.append(losses[0].item())
        return -LR * h.grad

    def train(self, stream: list[int], keep: np.ndarray, window: int, own: list[list[int]]) -> None:
        texts: list[list[int]] = [[]]
        for w in stream:
            if w == BREAK:
                texts.append([])
            elif w != UNKNOWN:
                texts[-1].append(w)
        for text in texts:
            text = [w for w in text if (self.number() >> 40) / 2**24 < keep[w]]
            self.kept += len(text)
            x = dict[int, torch.Tensor]()  # vectors of the words within the widest window
            before = dict[int, torch.Tensor]()
            for i, word in enumerate(text):
                for j in range(i, i + window + 1):
                    if j < len(text) and j not in before:
                        before[j] = self.inputs[own[text[j]]].mean(0)
                        x[j] = before[j].clone()
                reach = window - (self.number() >> 32) % window
                near = [j for j in range(i - reach, i + reach + 1) if 0 <= j < len(text) and j != i]
                if near:
                    h = torch.stack([x[j] for j in near])
                    steps = self.predict(h.mean(0)[None] if self.cbow else h, word, i % 16 == 0)
                    for j, step in zip(near, steps.expand_as(h), strict=True):
                        x[j] += step
                gone = range(len(text)) if i == len(text) - 1 else [i - window]
                for j in sorted(x.keys() & set(gone)):
                    for g in own[text[j]]:
                        self.inputs[g] += x[j] - before[j]
                    del x[j]


def arguments(arrays: list[np.ndarray], keep: np.ndarray, own: list[list[int]]) -> list[Any]:
    tree = vocabulary().huffman()
    starts = np.cumsum([0, *map(len, own)])
    return [
        rows(), *arrays, keep, starts, np.concatenate(own).astype(np.int32),
        vocabulary().noise(0.0), tree.starts, tree.nodes, tree.bits, 3, 3,
    ]  # fmt: skip


def run(loop: str, given: list[Any], **kind: bool) -> tuple[float, int, int]:
    if loop == "plain":
        return plain.train_words(*given, LR, STATE, **kind)
    buffers = [np.empty(n, kind) for n, kind in ((60, np.int32), (99, np.uint64), (99, np.float32))]
    buffers.append(np.full((3, 8, D), np.nan, np.float32))
    called: Run = compiled.train_words(D, **kind)
    return called(*given, np.float32(LR), np.uint64(STATE), *buffers)


def start() -> list[np.ndarray]:
    random = np.random.default_rng(2)
    return [random.normal(size=(n, D)).astype(np.float32) for n in (V + 5, V)]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("subwords", [False, True])
@pytest.mark.parametrize("hierarchical", [False, True])
@pytest.mark.parametrize("cbow", [False, True])
def test_a_step_is_the_gradient(loop: str, cbow: bool, hierarchical: bool, subwords: bool) -> None:
    if subwords and loop == "compiled" and hierarchical:
        pytest.skip("the same code as the other three; each takes a second to compile")
    arrays, keep, own = start(), vocabulary().keep(0.02), groups(subwords)
    assert 0 < keep[0] < keep[8] <= keep.max() == 1
    expected = Textbook(arrays, cbow=cbow, hierarchical=hierarchical)
    expected.train(rows().tolist(), keep, 3, own)
    found = run(loop, arguments(arrays, keep, own), cbow=cbow, hierarchical=hierarchical)
    np.testing.assert_allclose(arrays[0], expected.inputs, atol=3e-5)
    np.testing.assert_allclose(arrays[1], expected.output, atol=3e-5)
    assert not np.allclose(arrays[0], start()[0], atol=0.1)
    assert found[1:] == (len(expected.losses), expected.kept) and found[1] > 2
    assert found[0] == pytest.approx(sum(expected.losses), abs=1e-3)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("cbow", [False, True])
def test_the_only_word_of_a_vocabulary_learns_nothing_from_its_empty_path(
    loop: str, cbow: bool
) -> None:
    tree = Vocabulary(("stone",), np.array([20])).huffman()
    inputs, output = np.ones((1, D), np.float32), np.ones((1, D), np.float32)
    given = [
        np.zeros(20, np.int32), inputs, output, np.ones(1, np.float32), np.arange(2),
        np.zeros(1, np.int32), np.zeros(1, np.uint64), tree.starts, tree.nodes, tree.bits, 3, 3,
    ]  # fmt: skip
    run(loop, given, cbow=cbow, hierarchical=True)
    assert (inputs == 1).all() and (output == 1).all()


@needs_numba
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_vectors_that_diverged_reach_no_other_memory(value: float) -> None:
    arrays = [np.full_like(a, value) for a in start()]
    given = arguments(arrays, np.ones(V, np.float32), groups(False))
    run("compiled", given, cbow=False, hierarchical=False)
    assert not np.isfinite(arrays[0]).all()


@pytest.mark.parametrize("loop", LOOPS)
def test_glove_descends_equation_8_by_adagrad(loop: str) -> None:
    random = np.random.default_rng(3)
    n, x_max, alpha = 40, 4.0, 0.6
    i, j = (random.integers(V, size=n).astype(np.int32) for _ in range(2))
    x = random.uniform(0.2, 9, size=n).astype(np.float32)
    arrays = [random.normal(size=(V, D + 1)).astype(np.float32) for _ in range(2)]
    arrays += [random.uniform(1, 2, size=(V, D + 1)).astype(np.float32) for _ in range(2)]
    w, c, w_squares, c_squares = (torch.tensor(a, dtype=torch.float64) for a in arrays)
    costs = 0.0
    for row, column, count in zip(i.tolist(), j.tolist(), x.tolist(), strict=True):
        a, b = w[row].clone().requires_grad_(), c[column].clone().requires_grad_()
        f = (count / x_max) ** alpha if count < x_max else 1.0
        cost = f * (a[:D] @ b[:D] + a[D] + b[D] - math.log(count)) ** 2 / 2
        cost.backward()
        costs += cost.item()
        for p, squares, at, leaf in ((w, w_squares, row, a), (c, c_squares, column, b)):
            assert leaf.grad is not None
            p[at] -= LR * leaf.grad / squares[at].sqrt()
            squares[at] += (LR * leaf.grad) ** 2
    step: Callable[..., float] = plain.train_pairs
    if loop == "compiled":
        step = compiled.train_pairs(D)
    found = step(i, j, x, *arrays, *(np.float32(v) for v in (x_max, alpha, LR)))
    assert found == pytest.approx(costs, rel=1e-4)
    for mine, theirs in zip(arrays, (w, c, w_squares, c_squares), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-4)
