"""Second-order Markov chains over a lattice: estimation, the best path, and marginals.

All in log space. Shapes: S states, and the boundary as state number S; K candidates of a position
(most words have few), T positions. Transitions are [S+1, S+1, S+1]: ln P(last | first, middle).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]
Floats = npt.NDArray[np.float64]

MIN_UNIGRAM_SHARE = 1e-6  # of the interpolation: no sequence of known tags is impossible


def interpolate(counts: Floats, order: int) -> tuple[Floats, Floats]:
    """Transition probabilities by deleted interpolation (Brants 2000, equation 6 and figure 1).

        P(t₃ | t₁, t₂) = λ₁ P̂(t₃) + λ₂ P̂(t₃ | t₂) + λ₃ P̂(t₃ | t₁, t₂)

    Each trigram of the corpus is taken out of the counts in turn and gives its number to the λ of
    the order that predicts it best; ties go to the lower order. After a pair that never occurred,
    P̂(t₃ | t₂) stands for P̂(t₃ | t₁, t₂), so that every row sums to 1.

    Args:
        counts: [S+1, S+1, S+1] of trigrams, each sentence behind two boundaries and ended by one.
        order: 3, or 2 to leave the first state out.

    Returns:
        [S+1, S+1, S+1] probabilities (for order 2 a view of [S+1, S+1]), and [3] the λs.
    """
    pairs, context = counts.sum(0), counts.sum(2)  # of (t₂, t₃); of (t₁, t₂)
    single, middle = pairs.sum(0), pairs.sum(1)
    total = single.sum()
    first, second, third = (which := np.nonzero(counts))
    seen = counts[which]
    left = np.stack([
        _ratio(single[third] - 1, np.full(len(seen), total - 1)),
        _ratio(pairs[second, third] - 1, middle[second] - 1),
        _ratio(seen - 1, context[first, second] - 1),
    ])[:order]  # fmt: skip
    shares = np.bincount(left.argmax(0), seen, 3).astype(np.float64)
    shares[0] = max(shares[0], MIN_UNIGRAM_SHARE * total)
    shares /= shares.sum()
    longer = _ratio(pairs, middle[:, None])
    shorter = shares[0] * single / total + shares[1] * longer
    p = np.repeat((shorter + shares[2] * longer)[None], 1 if order == 2 else len(counts), axis=0)
    if order == 2:
        return np.broadcast_to(p, counts.shape), shares
    first, second = np.nonzero(context)
    known = counts[first, second] / context[first, second][:, None]
    p[first, second] = shorter[second] + shares[2] * known
    return p, shares


def best_path(
    transitions: Floats, candidates: Sequence[Ints], emissions: Sequence[Floats]
) -> tuple[list[int], float]:
    """The likeliest states (Viterbi), and ln of their joint probability.

    Args:
        transitions: [S+1, S+1, S+1].
        candidates: T arrays [K] of states.
        emissions: T arrays [K], ln P(word | state).
    """
    boundary = np.array([len(transitions) - 1])
    before, last, score = boundary, boundary, np.zeros((1, 1))
    pointers = []
    for states, emission in zip(candidates, emissions, strict=True):
        step = score[:, :, None] + transitions[before[:, None, None], last[:, None], states]
        pointers.append(step.argmax(0))
        score = step.max(0) + emission
        before, last = last, states
    score = score + transitions[before[:, None], last, boundary]
    i, j = divmod(int(score.argmax()), score.shape[1])
    path = []
    for t in range(len(candidates) - 1, -1, -1):
        path.append(int(candidates[t][j]))
        i, j = int(pointers[t][i, j]), i
    return path[::-1], float(score.max())


def marginals(
    transitions: Floats, candidates: Sequence[Ints], emissions: Sequence[Floats]
) -> tuple[list[Floats], float]:
    """P(state | sentence) of every candidate (forward-backward), and ln of the sentence's own.

    Args:
        transitions: As in `best_path`, like `candidates` and `emissions`.
    """
    boundary = np.array([len(transitions) - 1])
    places = [boundary, boundary, *candidates]
    forward = [np.zeros((1, 1))]
    for t, emission in enumerate(emissions):
        before, last, states = places[t : t + 3]
        step = forward[-1][:, :, None] + transitions[before[:, None, None], last[:, None], states]
        forward.append(np.logaddexp.reduce(step, axis=0) + emission)
    before, last = places[-2:]
    backward = transitions[before[:, None], last, boundary]
    total = float(np.logaddexp.reduce(forward[-1] + backward, axis=None))
    found = []
    for t in range(len(candidates) - 1, -1, -1):
        both = forward[t + 1] + backward
        found.append(np.exp(np.logaddexp.reduce(both, axis=0) - total))
        before, last, states = places[t : t + 3]
        step = transitions[before[:, None, None], last[:, None], states]
        backward = np.logaddexp.reduce(step + emissions[t] + backward, axis=2)
    return found[::-1], total


def _ratio(above: Floats, below: Floats) -> Floats:
    """Division in which 0 / 0 is 0."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
