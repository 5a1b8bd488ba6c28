"""Linear chains of tags: learning, marginals and the best path.

One source for two speeds: plain NumPy, which Numba compiles where it is installed (extra
`vectors`). Shapes: T tokens of a sentence, N of all, L tags, F features. What tokens have is `ids`,
all features in a row, token n's from `starts[n]` to `starts[n + 1]`. `chain` [L+1, L] holds the
weights of pairs of tags, and in its last row those of the first tag.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from inkstone.vectors.compiled import available

TINY = 1e-8  # squared gradient of a token that has been learned: it is left alone


class Loops(NamedTuple):
    """The functions, compiled or not.

    Attributes:
        scores: (ids, starts [T+1], weights [F, L]) → [T, L], the sum of each token's features.
        marginals: (scores, chain) → P(tag | sentence) [T, L], expected pairs of tags [L, L], and
            ln Z (Lafferty et al. 2001, section 3; scaled as by Rabiner 1989, section V.A).
        best_path: (scores, chain) → the likeliest tags [T], and their score.
        learn: (order, sentences, ids, starts, tags [N], weights, squares [F], chain, chain_squares,
            lr) → Σ −ln P(tags | sentence), in nats, of one pass in place; sentences are token
            numbers [S+1]. Steps are AdaGrad's (Duchi et al. 2011), one rate a feature.
    """

    scores: Callable[..., Any]
    marginals: Callable[..., Any]
    best_path: Callable[..., Any]
    learn: Callable[..., Any]


@functools.cache
def loops(*, compiled: bool | None = None) -> Loops:
    """The loops at the speed that is to be had, or as told."""
    if not (available() if compiled is None else compiled):
        return _build(lambda function: function)
    from numba import njit

    return _build(njit(error_model="numpy"))


def _build(compile_: Callable[..., Any]) -> Loops:
    @compile_
    def scores(ids, starts, weights):  # type: ignore[no-untyped-def]
        out = np.zeros((len(starts) - 1, weights.shape[1]), np.float64)
        for t in range(len(out)):
            for f in ids[starts[t] : starts[t + 1]]:
                out[t] += weights[f]
        return out

    @compile_
    def marginals(scores, chain):  # type: ignore[no-untyped-def]
        n, size = scores.shape
        step, begin = np.exp(chain[:size]), np.exp(chain[size])
        local, forward = np.empty((n, size)), np.empty((n, size))
        backward = np.ones((n, size))
        log_z = 0.0
        for t in range(n):
            top = scores[t].max()
            local[t] = np.exp(scores[t] - top)
            if t == 0:
                forward[t] = begin * local[t]
            else:
                forward[t] = (forward[t - 1].reshape(size, 1) * step).sum(0) * local[t]
            scale = forward[t].sum()
            forward[t] /= scale
            log_z += np.log(scale) + top
        for t in range(n - 2, -1, -1):
            backward[t] = (step * (local[t + 1] * backward[t + 1])).sum(1)
            backward[t] /= backward[t].sum()
        p, pairs = forward * backward, np.zeros((size, size))
        for t in range(n):
            p[t] /= p[t].sum()
            if t > 0:
                joint = forward[t - 1].reshape(size, 1) * step * (local[t] * backward[t])
                pairs += joint / joint.sum()
        return p, pairs, log_z

    @compile_
    def best_path(scores, chain):  # type: ignore[no-untyped-def]
        n, size = scores.shape
        pointers, path = np.zeros((n, size), np.int64), np.zeros(n, np.int64)
        best = scores[0] + chain[size]
        for t in range(1, n):
            after = np.empty(size)
            for y in range(size):
                ways = best + chain[:size, y]
                pointers[t, y] = ways.argmax()
                after[y] = ways[pointers[t, y]] + scores[t, y]
            best = after
        path[n - 1] = best.argmax()
        for t in range(n - 1, 0, -1):
            path[t - 1] = pointers[t, path[t]]
        return path, best.max()

    @compile_
    def learn(  # type: ignore[no-untyped-def]
        order, sentences, ids, starts, tags, weights, squares, chain, chain_squares, lr
    ):
        size, total = weights.shape[1], 0.0
        for s in order:
            a, b = sentences[s], sentences[s + 1]
            if a == b:
                continue
            local = scores(ids, starts[a : b + 1], weights)
            p, pairs, log_z = marginals(local, chain)
            total += log_z
            change = np.zeros((size + 1, size))
            change[:size] = pairs
            change[size] = p[0]
            before = size
            for t in range(b - a):
                tag = tags[a + t]
                total -= local[t, tag] + chain[before, tag]
                change[before, tag] -= 1
                p[t, tag] -= 1
                before = tag
            for t in range(b - a):
                square = (p[t] ** 2).sum() / size
                if square < TINY:
                    continue
                for f in ids[starts[a + t] : starts[a + t + 1]]:
                    squares[f] += square
                    weights[f] -= (lr / np.sqrt(squares[f]) * p[t]).astype(np.float32)
            chain_squares += change**2
            chain -= lr * change / np.sqrt(chain_squares)
        return total

    return Loops(scores, marginals, best_path, learn)
