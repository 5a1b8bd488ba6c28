"""Recurrent layers: Elman's network, LSTM and GRU, forwards and backwards, stacked.

A cell holds the weights and its formula, `advance`; a sequence is read by `read`, which multiplies
the inputs of all steps at once and leaves to the recurrence only what must wait for the step
before. The AWD-LSTM's regularisers (Merity et al. 2017) are here too. Shapes: B batch, T time,
R sequences, N tokens without padding (`Steps`), D width of the input, H hidden_size, G gates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inkstone.nn import compiled
from inkstone.nn.linear import Embedding, Linear
from inkstone.nn.pointwise import dropout
from inkstone.nn.steps import Steps

WORTH_IT = 512  # tokens: below, torch's kernels are as good, and nothing needs to be compiled
State = tuple[Tensor, ...]  # (h,), or (h, c) of an LSTM; each [R, H]


class Cell(nn.Module):
    """One layer in one direction.

    Weights are stacked gate by gate, as torch's are: the map of the input, with the biases, and
    the map of the state before.

    Args:
        d_in: D.
        hidden_size: H.
        weight_drop: Share of the recurrent weights that a training pass sets to zero (DropConnect;
            Merity et al. 2017, section 2): one draw for all steps and rows.
    """

    KIND: ClassVar[str]
    GATES: ClassVar[int]
    PARTS: ClassVar[int] = 1  # tensors of the state

    def __init__(self, d_in: int, hidden_size: int, *, weight_drop: float = 0.0) -> None:
        super().__init__()
        self.hidden_size, self.weight_drop = hidden_size, weight_drop
        d_out, gru = self.GATES * hidden_size, self.KIND == "gru"
        self.x = Linear(d_in, d_out, bias=True, maps=self.GATES)
        self.h = Linear(hidden_size, d_out, bias=gru, maps=self.GATES)
        self.init()

    @torch.no_grad()
    def init(self) -> None:
        """U(−1/√H, 1/√H), zero for biases."""
        bound = 1 / math.sqrt(self.hidden_size)
        for name, p in self.named_parameters():
            if not p.is_meta:
                p.zero_() if name.endswith("bias") else p.uniform_(-bound, bound)

    def start(self, n: int, like: Tensor) -> State:
        """The state before anything was read: zeros."""
        return (like.new_zeros(n, self.hidden_size),) * self.PARTS

    def recurrent_weight(self) -> Tensor:
        """[G·H, H], thinned out while training."""
        return dropout(self.h.weight, self.weight_drop, self.training)

    def advance(self, x: Tensor, state: State, weight: Tensor) -> State:
        """The cell's formula.

        Args:
            x: [B, G·H], the map of this step's input.
            state: Before this step.
            weight: `recurrent_weight()` in the dtype of x.
        """
        raise AssertionError("a cell defines its own")

    def step(self, x: Tensor, state: State) -> State:
        """One step of every row, as a decoder takes it: [B, D] → state, whose h is the output."""
        return self.advance(self.x(x), state, self.recurrent_weight().to(x.dtype))


class RNN(Cell):
    """h = tanh(W x + U h + b) (Elman 1990)."""

    KIND, GATES = "rnn", 1

    def advance(self, x: Tensor, state: State, weight: Tensor) -> State:
        return (torch.tanh(x + F.linear(state[0], weight)),)


class LSTM(Cell):
    """Gates i, f, o and a candidate g around a cell state c (Hochreiter & Schmidhuber 1997).

    c = f ⊙ c + i ⊙ g, h = o ⊙ tanh(c); the forget gate f and its bias of 1 at the beginning are
    those of Gers et al. 2000.
    """

    KIND, GATES, PARTS = "lstm", 4, 2

    @torch.no_grad()
    def init(self) -> None:
        super().init()
        assert self.x.bias is not None
        if not self.x.bias.is_meta:
            self.x.bias[self.hidden_size : 2 * self.hidden_size] = 1.0

    def advance(self, x: Tensor, state: State, weight: Tensor) -> State:
        i, f, g, o = (x + F.linear(state[0], weight)).chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class GRU(Cell):
    """Gates r and z: h = (1 − z) ⊙ n + z ⊙ h (Cho et al. 2014, eq. 5 to 8).

    As in torch, r is applied behind the recurrent map: n = tanh(W x + b + r ⊙ (U h + b′)), so that
    a step has one matmul instead of two.
    """

    KIND, GATES = "gru", 3

    def advance(self, x: Tensor, state: State, weight: Tensor) -> State:
        (h,) = state
        assert self.h.bias is not None
        x_r, x_z, x_n = x.chunk(3, -1)
        h_r, h_z, h_n = F.linear(h, weight, self.h.bias.to(x.dtype)).chunk(3, -1)
        r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        return ((1 - z) * n + z * h,)


class Stack(nn.Module):
    """Layers on layers, each reading forwards, or forwards and backwards.

    Args:
        cell: `RNN`, `LSTM` or `GRU`.
        d_in: D of the first layer's input.
        sizes: H of each layer.
        directions: 2 for bidirectional layers (Schuster & Paliwal 1997), whose outputs stand side
            by side.
        dropout: Between layers, with one mask for all steps of a sequence.
        weight_drop: As in `Cell`.
    """

    def __init__(
        self,
        cell: type[Cell],
        d_in: int,
        sizes: Sequence[int],
        *,
        directions: int = 1,
        dropout: float = 0.0,
        weight_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.directions, self.dropout = directions, dropout
        self.d_out = directions * sizes[-1]
        widths = [d_in, *(directions * size for size in sizes)]
        self.cells = nn.ModuleList(
            cell(width, size, weight_drop=weight_drop)
            for width, size in zip(widths, sizes, strict=False)
            for _ in range(directions)
        )

    def start(self, n: int, like: Tensor) -> list[State]:
        """The states of every cell before anything was read, for `n` sequences."""
        return [cell.start(n, like) for cell in self.cells]  # type: ignore[operator]

    def forward(
        self, x: Tensor, steps: Steps, states: Sequence[State] | None = None
    ) -> tuple[Tensor, list[State]]:
        """Read whole sequences.

        Args:
            x: [N, D], in the order of `steps`.
            steps: The layout.
            states: Of every cell, layer by layer, forwards before backwards; zeros when None. Each
                [R, H], in the order of the sequences in the batch.

        Returns:
            Outputs of the last layer [N, directions · H], and the states at the end of every
            sequence.
        """
        given = self.start(steps.n_sequences, x) if states is None else states
        ends: list[State] = []
        for first in range(0, len(self.cells), self.directions):
            if first:
                x = locked_dropout(x, steps, self.dropout, training=self.training)
            here = slice(first, first + self.directions)
            x, last = read(list(self.cells[here]), x, steps, given[here])  # type: ignore[arg-type]
            ends += last
        return x, ends

    def step(self, x: Tensor, states: Sequence[State]) -> tuple[Tensor, list[State]]:
        """One step of every row through all layers, forwards: [B, D] → [B, H] and the new states.

        For decoders whose next input depends on this output; no dropout between layers.
        """
        assert self.directions == 1
        ends = []
        for cell, state in zip(self.cells, states, strict=True):
            assert isinstance(cell, Cell)
            ends.append(cell.step(x, state))
            x = ends[-1][0]
        return x, ends


def read(
    cells: Sequence[Cell], x: Tensor, steps: Steps, states: Sequence[State]
) -> tuple[Tensor, list[State]]:
    """One layer over whole sequences: forwards, and with a second cell backwards.

    Args:
        cells: One or two of a kind.
        x: [N, D], in the order of `steps`.
        steps: The layout.
        states: Of each cell at the beginning (of the backward one: behind the end), [R, H].

    Returns:
        [N, H] or [N, 2H], and the state of each cell after its last token.
    """
    states = [tuple(steps.sort(part) for part in state) for state in states]
    size = cells[0].hidden_size
    if steps.n_tokens >= WORTH_IT and compiled.fits(x.dtype, x.device, size):
        out, ends = _compiled_read(cells, x, steps, states)
    else:
        out, ends = _torch_read(cells, x, steps, states)
    return out, [tuple(steps.unsort(part) for part in state) for state in ends]


def _compiled_read(
    cells: Sequence[Cell], x: Tensor, steps: Steps, states: Sequence[State]
) -> tuple[Tensor, list[State]]:
    """`read` by our own kernels; states in the order of the steps."""
    outs, ends = [], []
    for place, (cell, state) in enumerate(zip(cells, states, strict=True)):
        bias, inner = cell.x.bias, cell.h.bias
        assert bias is not None
        out, *end = compiled.Recurrence.apply(
            x, cell.x.weight.to(x.dtype), bias.to(x.dtype), cell.recurrent_weight().to(x.dtype),
            None if inner is None else inner.to(x.dtype), state[0],
            state[1] if cell.PARTS > 1 else None, steps, cell.KIND, place == 1,
        )  # fmt: skip
        outs.append(out)
        ends.append(tuple(end[: cell.PARTS]))
    return torch.cat(outs, -1) if len(outs) > 1 else outs[0], ends


def _torch_read(
    cells: Sequence[Cell], x: Tensor, steps: Steps, states: Sequence[State]
) -> tuple[Tensor, list[State]]:
    """`read` by torch's own kernels; states in the order of the steps."""
    weights, n = [], steps.sizes[0] if steps.sizes else 0
    for cell in cells:
        assert cell.x.bias is not None
        bias = torch.zeros_like(cell.x.bias) if cell.h.bias is None else cell.h.bias
        weights += [cell.x.weight, cell.recurrent_weight(), cell.x.bias, bias]
    weights = [w.to(x.dtype) for w in weights]
    kernels: dict[str, Any] = {"rnn": torch.rnn_tanh, "lstm": torch.lstm, "gru": torch.gru}
    begin = [torch.stack(parts).to(x.dtype)[:, :n] for parts in zip(*states, strict=True)]
    if not n:
        return x.new_zeros(0, len(cells) * cells[0].hidden_size), list(states)
    learns = torch.is_grad_enabled()  # cuDNN keeps what a backward pass needs only if it is told
    out, *ends = kernels[cells[0].KIND](
        x, torch.tensor(steps.sizes), begin if len(begin) > 1 else begin[0], weights,
        True, 1, 0.0, learns, len(cells) > 1,
    )  # fmt: skip
    if n < steps.n_sequences:  # sequences without a token stay where they are
        ends = [
            torch.cat((end, torch.stack(parts).to(x.dtype)[:, n:]), 1)
            for end, parts in zip(ends, zip(*states, strict=True), strict=True)
        ]
    return out, list(zip(*(end.unbind(0) for end in ends), strict=True))


def locked_dropout(x: Tensor, steps: Steps, rate: float, *, training: bool) -> Tensor:
    """Dropout that hides the same features at every step of a sequence (Gal & Ghahramani 2016).

    Args:
        x: [N, D].
        steps: The layout.
        rate: Share of the features that are hidden.
        training: Nothing is hidden otherwise.
    """
    if not training or not rate:
        return x
    return steps.each(x, dropout(x.new_ones(steps.n_sequences, x.shape[1]), rate))


def embedding_dropout(
    embed: Embedding, ids: Tensor, dtype: torch.dtype, rate: float, *, training: bool
) -> Tensor:
    """Embeddings of which whole words are hidden, at all their places (Gal & Ghahramani 2016).

    Args:
        embed: The table [V, D].
        ids: [...].
        dtype: Of the result.
        rate: Share of the words that are hidden.
        training: Nothing is hidden otherwise.

    Returns:
        [..., D].
    """
    x = embed(ids, dtype)
    if not training or not rate:
        return x
    kept = dropout(x.new_ones(len(embed.weight)), rate)
    return x * kept[ids].unsqueeze(-1)


def activation_loss(dropped: Tensor, raw: Tensor, steps: Steps, ar: float, tar: float) -> Tensor:
    """ar · mean(dropped²) + tar · mean((hₜ₊₁ − hₜ)²) (Merity et al. 2017, section 4.6).

    Args:
        dropped: [N, H], outputs of the last layer behind dropout: kept small.
        raw: [N, H], the same ahead of dropout: kept slow.
        steps: The layout.
        ar: Weight of the first (α).
        tar: Weight of the second (β).
    """
    first = steps.sizes[0] if steps.sizes else 0
    loss = ar * dropped.float().square().mean()
    if len(raw) > first:
        before = steps.previous(raw, raw.new_zeros(steps.n_sequences, raw.shape[1]))
        loss = loss + tar * (raw[first:] - before[first:]).float().square().mean()
    return loss
