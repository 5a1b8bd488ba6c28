"""A batch laid out for a recurrence: one time step after the other, without padding.

A recurrent layer reads step t of every row before step t + 1 of any. Sorted by length, the rows
that still go on at a step are the first ones, so the batch shrinks as rows end and nothing is
computed for padding. Linear maps run over all N tokens at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from inkstone.errors import ModelError


@dataclass(frozen=True)
class Steps:
    """Where the tokens of a batch stand: R sequences, N tokens in all.

    A sequence is a row of the batch or, where a row holds several documents, one of them.

    Attributes:
        shape: B rows and T columns of the batch.
        sizes: Sequences that have a token at step t, one number a step; they never grow.
        index: [N] int64, place b·T + t of each token; None where every place holds a token.
        rank: [R] int64, where each sequence stands after sorting; None where all are equally long.
        device: Of the ids.
    """

    shape: tuple[int, int]
    sizes: tuple[int, ...]
    index: Tensor | None
    rank: Tensor | None
    device: torch.device

    @classmethod
    def of(
        cls,
        ids: Tensor,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Steps:
        """From ids [B, T].

        Args:
            ids: Only their shape and device matter.
            attention_mask: [B, T], True (or 1) at tokens, which need not be side by side.
            segment_ids: [B, T]; where it changes, a new sequence begins.

        Raises:
            ModelError: The shapes do not fit together.
        """
        batch, length = ids.shape
        for name, other in (("attention_mask", attention_mask), ("segment_ids", segment_ids)):
            if other is not None and other.shape != ids.shape:
                raise ModelError(
                    f"{name} has shape {tuple(other.shape)}, but the batch is {tuple(ids.shape)}"
                )
        real = None if attention_mask is None else attention_mask.bool()
        if segment_ids is None and (real is None or bool(real.all())):
            return cls((batch, length), (batch,) * length, None, None, ids.device)
        if real is None:
            real = torch.ones_like(ids, dtype=torch.bool)
        places = real.flatten().nonzero().squeeze(1)
        rows = places // length
        if segment_ids is None:
            sequence, n_sequences = rows, batch
        else:
            segments = segment_ids.flatten()[places]
            starts = (rows[1:] != rows[:-1]) | (segments[1:] != segments[:-1])
            sequence = torch.cat((places.new_zeros(min(1, len(places))), starts.cumsum(0)))
            n_sequences = int(sequence[-1]) + 1 if len(places) else 0
        lengths = torch.bincount(sequence, minlength=n_sequences)
        time = torch.arange(len(places), device=ids.device)
        time = time - (lengths.cumsum(0) - lengths)[sequence]
        rank = torch.empty_like(lengths)
        rank[lengths.argsort(descending=True, stable=True)] = torch.arange(
            n_sequences, device=ids.device
        )
        sizes = torch.bincount(time)
        index = torch.empty_like(places)
        index[(sizes.cumsum(0) - sizes)[time] + rank[sequence]] = places
        return cls((batch, length), tuple(sizes.tolist()), index, rank, ids.device)

    @property
    def n_sequences(self) -> int:
        """R."""
        return self.shape[0] if self.rank is None else len(self.rank)

    @property
    def n_tokens(self) -> int:
        """N."""
        return sum(self.sizes)

    @cached_property
    def offsets(self) -> Tensor:
        """[steps + 1] int64 on the CPU: where each step begins, and N."""
        return torch.tensor((0, *self.sizes)).cumsum(0)

    @cached_property
    def rows(self) -> Tensor:
        """[N] int64, the sorted sequence that each token belongs to."""
        starts = self.offsets[:-1].repeat_interleave(torch.tensor(self.sizes, dtype=torch.int64))
        return (torch.arange(self.n_tokens) - starts).to(self.device)

    @cached_property
    def last(self) -> Tensor:
        """[sizes[0]] int64, the last token of every sequence that has one, sorted."""
        alive = (
            torch.tensor((*self.sizes[1:], 0)) if self.sizes else torch.zeros(0, dtype=torch.int64)
        )
        counts = torch.tensor(self.sizes, dtype=torch.int64) - alive  # sequences that end here
        ends = self.offsets[:-1].flip(0).repeat_interleave(counts.flip(0))
        return (ends + torch.arange(len(ends))).to(self.device)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] → [N, ...]."""
        if self.index is None:
            return x.transpose(0, 1).flatten(0, 1)
        return x.flatten(0, 1).index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """[N, ...] → [B, T, ...], zeros where there is no token."""
        batch, length = self.shape
        if self.index is None:
            return x.unflatten(0, (length, batch)).transpose(0, 1)
        out = x.new_zeros(batch * length, *x.shape[1:])
        return out.index_copy(0, self.index, x).unflatten(0, (batch, length))

    def sort(self, x: Tensor) -> Tensor:
        """One entry a sequence, [R, ...], in the order of the steps."""
        return x if self.rank is None else torch.empty_like(x).index_copy(0, self.rank, x)

    def unsort(self, x: Tensor) -> Tensor:
        """The inverse of `sort`."""
        return x if self.rank is None else x.index_select(0, self.rank)

    def previous(self, x: Tensor, initial: Tensor, *, reverse: bool = False) -> Tensor:
        """What stood one step earlier in the same sequence (later, when reading backwards).

        Args:
            x: [N, D].
            initial: [R, D], sorted: what stands before the first step of a sequence.
            reverse: Whether the sequences are read from their end.

        Returns:
            [N, D].
        """
        first = self.sizes[0] if self.sizes else 0
        if self.rank is None:
            parts = (x[first:], initial) if reverse else (initial, x[: len(x) - first])
            return torch.cat(parts)
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        before = sizes[:-1].repeat_interleave(sizes[1:])
        earlier = (torch.arange(first, self.n_tokens) - before).to(self.device)
        if not reverse:
            return torch.cat((initial[:first], x.index_select(0, earlier)))
        return initial.index_select(0, self.rows).index_copy(0, earlier, x[first:])

    def each(self, x: Tensor, factors: Tensor) -> Tensor:
        """Every token times the factors of its sequence: [N, D] · [R, D] (sorted) → [N, D]."""
        if self.rank is None:
            return (x.unflatten(0, (-1, len(factors))) * factors).flatten(0, 1)
        return x * factors.index_select(0, self.rows)
