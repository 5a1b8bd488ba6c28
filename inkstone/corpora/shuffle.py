"""A random order of n things without a list of n things.

A four-round Feistel network over the smallest even number of bits that covers n is a bijection of
[0, 4^k); walking its cycle until the value falls below n makes it one of [0, n) (Black & Rogaway
2002, "Ciphers with arbitrary finite domains", methods 2 and 3).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROUNDS = 4
U64 = np.uint64


class Permutation:
    """A seeded permutation of range(n), the same on every machine.

    Args:
        n: Size, at most 2^62.
        seed: Any number of integers in [0, 2^64), for example a seed and an epoch.
    """

    def __init__(self, n: int, *seed: int) -> None:
        assert 0 < n <= 2**62
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._half = (bits + 1) // 2
        self._mask = U64((1 << self._half) - 1)
        state = U64(0x9E3779B97F4A7C15)
        for part in seed:
            state = _mix(np.array([state ^ U64(part)]))[0]
        self._keys = [_mix(np.array([state + U64(i)]))[0] for i in range(1, ROUNDS + 1)]

    def __call__(self, index: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Where the given indices go; any shape of integers in [0, n)."""
        values = np.atleast_1d(np.asarray(index)).astype(np.uint64)
        out = self._encrypt(values)
        outside = out >= U64(self.n)
        while outside.any():
            out[outside] = self._encrypt(out[outside])
            outside = out >= U64(self.n)
        return out.astype(np.int64)

    def _encrypt(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        shift = U64(self._half)
        left, right = values >> shift, values & self._mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & self._mask)
        return (left << shift) | right


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit reaches every bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
        return x ^ (x >> U64(31))
