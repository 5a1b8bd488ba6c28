"""The inner loops, compiled by Numba: `plain.py` does the same, readably and slowly.

Numba is the extra `vectors`; `available()` says whether it is there. A loop is compiled when it is
first asked for (about a second), with the vector length as a constant so that LLVM unrolls it into
full-width vector instructions, and never cached on disk. Loops hold no interpreter lock and
update shared arrays without locks (Hogwild, Recht et al. 2011): several threads at once are not
reproducible to the bit, one thread is.
"""

# Indices are unsigned throughout: Numba would otherwise test each one for "counted from the end".

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from inkstone.vectors.plain import LIMIT, LOSS_EVERY, SIGMOID, STEPS
from inkstone.vectors.vocabulary import BREAK

U = np.uint64
F = np.float32
LOW = U(0xFFFFFFFF)


def available() -> bool:
    """Whether Numba is installed."""
    return importlib.util.find_spec("numba") is not None


@functools.cache
def train_words(d_model: int, *, cbow: bool, hierarchical: bool) -> Callable[..., Any]:
    """The loop of `plain.train_words` for vectors of one length."""
    from numba import njit

    compiled = njit(nogil=True, fastmath=True, error_model="numpy")
    inlined = njit(fastmath=True, error_model="numpy", inline="always")  # a fifth faster than calls
    d, table, sixteen, per_unit = d_model, SIGMOID, F(LIMIT), F(STEPS / (2 * LIMIT))

    @compiled
    def draw(state):  # type: ignore[no-untyped-def]
        state ^= state << U(13)
        state ^= state >> U(7)
        return state ^ (state << U(17))

    @inlined
    def targets(word, state, noise, starts, nodes, bits, negative, outputs, labels):  # type: ignore[no-untyped-def]
        """Rows of the output matrix that this word trains, with their labels."""
        if hierarchical:
            first = starts[word]
            count = starts[word + U(1)] - first
            for q in range(count):
                outputs[q] = nodes[first + q]
                labels[q] = F(1) - F(bits[first + q])
            return count, state
        outputs[0], labels[0] = word, F(1)
        count = 1
        size = U(len(noise))
        for _ in range(negative):
            state = draw(state)
            x = ((state >> U(32)) * size) >> U(32)
            entry = noise[x]
            x = x if (state & LOW) < (entry >> U(32)) else entry & LOW
            outputs[count], labels[count] = x, F(0)
            count += x != word
        return count, state

    @inlined
    def learn(h, new, output, outputs, labels, count, lr, error):  # type: ignore[no-untyped-def]
        """One gradient step on −Σ log σ(±h·v): adds h's part to `new`, writes the v's."""
        for q in range(count):
            row = U(outputs[q])
            dot = F(0)
            for k in range(d):
                dot += h[U(k)] * output[row, U(k)]
            place = min(max((dot + sixteen) * per_unit, F(0)), F(STEPS - 1))
            cell = min(np.uint32(place), np.uint32(STEPS - 1))  # a NaN is no place in the table
            low = table[cell]
            error[q] = labels[q] - (low + (place - F(cell)) * (table[cell + U(1)] - low))
        for q in range(count):
            row, step = U(outputs[q]), error[q] * lr
            for k in range(d):
                v = output[row, U(k)]
                new[U(k)] += step * v
                output[row, U(k)] = v + step * h[U(k)]

    @compiled
    def loss_of(error, count):  # type: ignore[no-untyped-def]
        total = 0.0
        for q in range(count):
            total -= np.log(max(1e-6, 1.0 - abs(error[q])))
        return total

    @compiled
    def run(  # type: ignore[no-untyped-def]
        rows, inputs, output, keep, group_starts, groups, noise, starts, nodes, bits,
        window, negative, lr, state, buffer, outputs, labels,
    ):  # fmt: skip
        h, new, old = np.empty(d, F), np.empty(d, F), np.empty(d, F)
        error = np.empty(len(outputs), F)
        loss, looked, kept = 0.0, 0, 0
        position, end = 0, len(rows)
        while position < end:
            n = 0
            while position < end:
                word = rows[U(position)]
                position += 1
                if word == BREAK:
                    break
                if word < 0:
                    continue
                state = draw(state)
                if F(state >> U(40)) * F(2.0**-24) < keep[U(word)]:
                    buffer[U(n)] = word
                    n += 1
            kept += n
            for i in range(n):
                state = draw(state)
                reach = window - np.int64((state >> U(32)) % U(window))
                left, right = max(0, i - reach), min(n, i + reach + 1)
                if right - left < 2:
                    continue
                look = i % LOSS_EVERY == 0
                for k in range(d):
                    h[U(k)] = F(0)
                if cbow:
                    members = 0
                    for j in range(left, right):
                        if j == i:
                            continue
                        word = U(buffer[U(j)])
                        for g in range(group_starts[word], group_starts[word + U(1)]):
                            row = U(groups[U(g)])
                            members += 1
                            for k in range(d):
                                h[U(k)] += inputs[row, U(k)]
                    scale = F(1) / F(members)
                    for k in range(d):
                        h[U(k)] *= scale
                        new[U(k)] = F(0)
                    count, state = targets(
                        U(buffer[U(i)]), state, noise, starts, nodes, bits, negative,
                        outputs, labels,
                    )  # fmt: skip
                    learn(h, new, output, outputs, labels, count, lr, error)
                    if look:
                        loss += loss_of(error, count)
                        looked += 1
                    for j in range(left, right):
                        if j == i:
                            continue
                        word = U(buffer[U(j)])
                        for g in range(group_starts[word], group_starts[word + U(1)]):
                            row = U(groups[U(g)])
                            for k in range(d):
                                inputs[row, U(k)] += new[U(k)]
                else:
                    word = U(buffer[U(i)])
                    first, last = group_starts[word], group_starts[word + U(1)]
                    for g in range(first, last):
                        row = U(groups[U(g)])
                        for k in range(d):
                            h[U(k)] += inputs[row, U(k)]
                    scale = F(1) / F(last - first)
                    for k in range(d):
                        h[U(k)] *= scale
                        new[U(k)] = h[U(k)]
                        old[U(k)] = h[U(k)]
                    for j in range(left, right):
                        if j == i:
                            continue
                        count, state = targets(
                            U(buffer[U(j)]), state, noise, starts, nodes, bits, negative,
                            outputs, labels,
                        )  # fmt: skip
                        learn(h, new, output, outputs, labels, count, lr, error)
                        if look:
                            loss += loss_of(error, count)
                            looked += 1
                            look = False
                        for k in range(d):
                            h[U(k)] = new[U(k)]
                    for g in range(first, last):
                        row = U(groups[U(g)])
                        for k in range(d):
                            inputs[row, U(k)] += h[U(k)] - old[U(k)]
        return loss, looked, kept

    return run


@functools.cache
def train_pairs(d_model: int) -> Callable[..., Any]:
    """The loop of `plain.train_pairs` for vectors of one length."""
    from numba import njit

    d = d_model

    @njit(nogil=True, fastmath=True, error_model="numpy")
    def run(rows, columns, counts, w, c, w_squares, c_squares, x_max, alpha, lr):  # type: ignore[no-untyped-def]
        """Vectors carry their bias as entry d."""
        cost = 0.0
        for n in range(len(rows)):
            i, j, x = U(rows[U(n)]), U(columns[U(n)]), counts[U(n)]
            dot = F(0)
            for k in range(d):
                dot += w[i, U(k)] * c[j, U(k)]
            difference = dot + w[i, U(d)] + c[j, U(d)] - np.log(x)
            weight = F(1) if x >= x_max else (x / x_max) ** alpha
            cost += 0.5 * weight * difference * difference
            step = weight * difference * lr
            for k in range(d):
                to_w, to_c = step * c[j, U(k)], step * w[i, U(k)]
                w[i, U(k)] -= to_w / np.sqrt(w_squares[i, U(k)])
                c[j, U(k)] -= to_c / np.sqrt(c_squares[j, U(k)])
                w_squares[i, U(k)] += to_w * to_w
                c_squares[j, U(k)] += to_c * to_c
            w[i, U(d)] -= step / np.sqrt(w_squares[i, U(d)])
            c[j, U(d)] -= step / np.sqrt(c_squares[j, U(d)])
            w_squares[i, U(d)] += step * step
            c_squares[j, U(d)] += step * step
        return cost

    return run
