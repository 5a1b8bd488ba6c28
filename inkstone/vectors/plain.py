"""The inner loops in plain NumPy: what `compiled.py` does, to read, to test against, and to run
where Numba is not installed (some hundred times slower).

Random numbers come from xorshift64 (Marsaglia 2003, shifts 13, 7, 17), one state a chunk of text,
drawn in this order: one number a word to thin out frequent words, through a whole text; then for
each word that was kept, one for its window, and one for each noise word that it is told from.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from inkstone.vectors.vocabulary import BREAK

LIMIT, STEPS = 16.0, 2048  # the sigmoid is read from a table over [−16, 16], between two entries
SIGMOID = (1 / (1 + np.exp(LIMIT - 2 * LIMIT * np.arange(STEPS + 1) / STEPS))).astype(np.float32)
LOSS_EVERY = 16  # the loss is looked at for the first prediction of every 16th word
MASK = (1 << 64) - 1

Floats = npt.NDArray[np.float32]


class Random:
    """xorshift64."""

    def __init__(self, state: int) -> None:
        self.state = int(state)

    def __call__(self) -> int:
        x = self.state
        x ^= x << 13 & MASK
        x ^= x >> 7
        self.state = x ^ (x << 17 & MASK)
        return self.state


def train_words(
    rows: npt.NDArray[np.int32],
    inputs: Floats,
    output: Floats,
    keep: Floats,
    group_starts: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int32],
    noise: npt.NDArray[np.uint64],
    starts: npt.NDArray[np.int64],
    nodes: npt.NDArray[np.int32],
    bits: npt.NDArray[np.uint8],
    window: int,
    negative: int,
    lr: float,
    state: int,
    *,
    cbow: bool,
    hierarchical: bool,
) -> tuple[float, int, int]:
    """Train on one chunk of text, in place.

    With h the input side and v' the output rows, one prediction of the word w is one step of
    stochastic gradient descent on

        −log σ(v'_w · h) − Σᵢ log σ(−v'_i · h),  i drawn from the noise   (Mikolov 2013b, eq. 4)
        −Σ_n log σ(±v'_n · h),  n on w's path in the Huffman tree          (eq. 3)

    The word in the middle of a window is predicted. Skip-gram: from each word around it, h being
    that word's vector; all are told from the same noise words (Ji et al. 2016, section 3) and learn
    from the output rows as they were. CBOW: h is the mean of those vectors, and each of them takes
    the whole gradient of h, as in word2vec's released code.

    The vector of a word is the mean of the rows of its group (fastText: itself and its n-grams;
    word2vec: only itself). It is held from when the word comes within reach of a window until no
    window reaches it; then every row of the group takes the whole gain, as in fastText's code.

    The output rows move one after another; where noise draws a word twice, its second move starts
    from the first.

    Args:
        rows: [N] words, or UNKNOWN, or BREAK.
        inputs: [R, D] rows that words are made of.
        output: [V, D], or [V − 1, D] inner nodes.
        keep: [V] probability that an occurrence is kept.
        group_starts, groups: Rows of word w: groups[group_starts[w] : group_starts[w + 1]].
        noise: [V] alias table (`Vocabulary.noise`).
        starts, nodes, bits: Huffman paths (`HuffmanTree`).
        window: The widest; each position draws its own from 1 to this.
        negative: Noise words a window; one that equals the target is dropped.
        lr: Learning rate of the whole chunk.
        state: Of the random numbers, not 0.
        cbow, hierarchical: Which of the four.

    Returns:
        Sum of the losses looked at (nats), how many they were, and words that were kept.
    """
    random = Random(state)
    group = [groups[a:b] for a, b in pairwise(group_starts)]
    loss, looked, kept = 0.0, 0, 0

    def targets(word: int) -> tuple[npt.NDArray[np.int64], Floats]:
        if hierarchical:
            path = slice(starts[word], starts[word + 1])
            return nodes[path].astype(np.int64), (1 - bits[path]).astype(np.float32)
        drawn = [word]
        for _ in range(negative):
            number = random()
            x = (number >> 32) * len(noise) >> 32
            entry = int(noise[x])
            x = x if number & 0xFFFFFFFF < entry >> 32 else entry & 0xFFFFFFFF
            if x != word:
                drawn.append(x)
        labels = np.zeros(len(drawn), np.float32)
        labels[0] = 1
        return np.array(drawn), labels

    def learn(h: Floats, word: int, look: bool) -> Floats:
        """Updates the output rows by every row of h [M, D]; returns the steps of h."""
        nonlocal loss, looked
        which, labels = targets(word)
        error = labels[:, None] - 1 / (1 + np.exp(-(output[which] @ h.T)))
        if look:
            loss -= float(np.log(np.maximum(1e-6, 1 - np.abs(error[:, 0]))).sum())
            looked += 1
        to_h = np.zeros_like(h)
        for row, step in zip(which, np.float32(lr) * error, strict=True):
            to_h += np.outer(step, output[row])
            output[row] += step @ h
        return to_h

    for text in _texts(rows):
        words = [int(w) for w in text if w >= 0]
        words = [w for w in words if np.float32((random() >> 40) * 2.0**-24) < keep[w]]
        kept += len(words)
        held: dict[int, tuple[Floats, Floats]] = {}  # as they came into the window, and now
        for i, word in enumerate([*words, *[-1] * window]):
            for j in range(i, min(i + window + 1, len(words))):
                if j not in held:
                    entered = inputs[group[words[j]]].mean(axis=0)
                    held[j] = entered, entered.copy()
            if word >= 0:
                reach = window - (random() >> 32) % window
                near = [j for j in range(i - reach, i + reach + 1) if j in held and j != i]
                if near:
                    h = np.stack([held[j][1] for j in near])
                    if cbow:
                        h = h.mean(axis=0, keepdims=True)
                    steps = learn(h, word, i % LOSS_EVERY == 0)
                    for number, j in enumerate(near):
                        held[j][1][:] += steps[0 if cbow else number]
            if i >= window and i - window in held:
                entered, left = held.pop(i - window)
                np.add.at(inputs, group[words[i - window]], left - entered)
    return loss, looked, kept


def train_pairs(
    rows: npt.NDArray[np.int32],
    columns: npt.NDArray[np.int32],
    counts: Floats,
    w: Floats,
    c: Floats,
    w_squares: Floats,
    c_squares: Floats,
    x_max: float,
    alpha: float,
    lr: float,
) -> float:
    """GloVe: AdaGrad on ½ f(X_ij) (w_i · c_j + b_i + b_j − log X_ij)², one pair after another.

    Pennington et al. 2014, equations 8 and 9: f(x) = (x / x_max)^alpha below x_max, else 1. As in
    the released code, the squares that are summed are those of lr · gradient, start at 1, and those
    up to the last step divide this one.

    Args:
        rows, columns: [N] i and j.
        counts: [N] X_ij.
        w, c: [V, D + 1] word and context vectors, each with its bias at the end.
        w_squares, c_squares: [V, D + 1] sums of squares.

    Returns:
        Sum of the costs.
    """
    cost = 0.0
    for i, j, x in zip(rows.tolist(), columns.tolist(), counts.tolist(), strict=True):
        difference = float(w[i, :-1] @ c[j, :-1]) + float(w[i, -1] + c[j, -1]) - np.log(x)
        weight = min(1.0, (x / x_max) ** alpha)
        cost += 0.5 * weight * difference**2
        step = np.float32(weight * difference * lr)
        to_w, to_c = step * c[j], step * w[i]
        to_w[-1] = to_c[-1] = step
        w[i] -= to_w / np.sqrt(w_squares[i])
        c[j] -= to_c / np.sqrt(c_squares[j])
        w_squares[i] += to_w * to_w
        c_squares[j] += to_c * to_c
    return cost


def _texts(rows: npt.NDArray[np.int32]) -> Iterator[npt.NDArray[Any]]:
    """The stream cut at BREAK."""
    start = 0
    for end in [*np.flatnonzero(rows == BREAK).tolist(), len(rows)]:
        yield rows[start:end]
        start = end + 1
