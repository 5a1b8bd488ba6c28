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
from inkstone.vectors.rows import row_functions
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
    table, sixteen, per_unit = SIGMOID, F(LIMIT), F(STEPS / (2 * LIMIT))
    size, (dot, put, add) = U(4 * d_model), row_functions(d_model)  # bytes of a row

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
    def learn(x, gain, near, m, output, outputs, labels, count, lr, error):  # type: ignore[no-untyped-def]
        """One gradient step on −Σ log σ(±x·v) of m x's with all v's; leaves `gain` for the x's."""
        for q in range(count):
            v = output + U(outputs[q]) * size
            for j in range(m):
                place = (dot(x + near[U(j)] * size, v) + sixteen) * per_unit
                place = min(max(place, F(0)), F(STEPS - 1))
                cell = min(np.uint32(place), np.uint32(STEPS - 1))  # a NaN is no place in the table
                low = table[cell]
                error[q, j] = labels[q] - (low + (place - F(cell)) * (table[cell + U(1)] - low))
        for j in range(m):
            at = near[U(j)] * size
            put(gain + at, F(0), x + at)
        for q in range(count):  # none, where the only word of a vocabulary has an empty path
            v = output + U(outputs[q]) * size
            for j in range(m):
                add(gain + near[U(j)] * size, error[q, j] * lr, v)
            for j in range(m):
                add(v, error[q, j] * lr, x + near[U(j)] * size)

    @compiled
    def loss_of(error, count):  # type: ignore[no-untyped-def]
        total = 0.0
        for q in range(count):
            total -= np.log(max(1e-6, 1.0 - abs(error[q, 0])))
        return total

    @inlined
    def enter(word, at, x, entered, inputs, group_starts, groups):  # type: ignore[no-untyped-def]
        """Hold the vector of a word that comes into the window."""
        first, last = group_starts[word], group_starts[word + U(1)]
        share = F(1) / F(last - first)
        put(x + at, share, inputs + U(groups[U(first)]) * size)
        for g in range(first + 1, last):
            add(x + at, share, inputs + U(groups[U(g)]) * size)
        put(entered + at, F(1), x + at)

    @inlined
    def leave(word, at, x, entered, inputs, group_starts, groups):  # type: ignore[no-untyped-def]
        """What a word's vector has gained since goes into its rows."""
        add(x + at, F(-1), entered + at)
        for g in range(group_starts[word], group_starts[word + U(1)]):
            add(inputs + U(groups[U(g)]) * size, F(1), x + at)

    @compiled
    def run(  # type: ignore[no-untyped-def]
        rows, inputs, output, keep, group_starts, groups, noise, starts, nodes, bits,
        window, negative, lr, state, buffer, outputs, labels, held,
    ):  # fmt: skip
        """`plain.train_words` with room to work in, which the caller keeps alive: addresses of what
        is made here would not.

        Args:
            buffer: [N] int32.
            outputs, labels: [longest path, or negative + 1] uint64, fp32.
            held: [3, 2 · window + 2, D] fp32.
        """
        ring = 2 * window + 1  # vectors that are held, and behind them the mean of some
        x = U(held.ctypes.data)
        gain = x + U(ring + 1) * size
        entered, mean = gain + U(ring + 1) * size, U(ring)
        near, middle = np.empty(ring, U), np.full(1, mean, U)
        error = np.empty((len(outputs), ring), F)
        source, target = U(inputs.ctypes.data), U(output.ctypes.data)
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
            for i in range(-window, n + window):
                if i + window < n:
                    word, at = U(buffer[U(i + window)]), U((i + window) % ring) * size
                    enter(word, at, x, entered, source, group_starts, groups)
                if 0 <= i < n:
                    state = draw(state)
                    reach = window - np.int64((state >> U(32)) % U(window))
                    m = 0
                    for j in range(max(0, i - reach), min(n, i + reach + 1)):
                        near[U(m)] = U(j % ring)
                        m += j != i
                    if m > 0:
                        word = U(buffer[U(i)])
                        count, state = targets(
                            word, state, noise, starts, nodes, bits, negative, outputs, labels
                        )
                        if cbow:
                            share = F(1) / F(m)
                            put(x + mean * size, share, x + near[U(0)] * size)
                            for j in range(1, m):
                                add(x + mean * size, share, x + near[U(j)] * size)
                            learn(x, gain, middle, 1, target, outputs, labels, count, lr, error)
                            for j in range(m):
                                add(x + near[U(j)] * size, F(1), gain + mean * size)
                        else:
                            learn(x, gain, near, m, target, outputs, labels, count, lr, error)
                            for j in range(m):
                                at = near[U(j)] * size
                                add(x + at, F(1), gain + at)
                        if i % LOSS_EVERY == 0:
                            loss += loss_of(error, count)
                            looked += 1
                if i - window >= 0:
                    word, at = U(buffer[U(i - window)]), U((i - window) % ring) * size
                    leave(word, at, x, entered, source, group_starts, groups)
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
