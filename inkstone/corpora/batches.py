"""Batches of rows cut from corpora: shuffled for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inkstone.corpora.shards import Corpus
from inkstone.corpora.shuffle import Permutation
from inkstone.errors import DataError, RunError
from inkstone.nn.loss import IGNORE_INDEX


@dataclass(frozen=True)
class Batch:
    """Rows of tokens and what is to be predicted after each.

    Attributes:
        input_ids: [B, T] int64.
        targets: [B, T] int64, the token that follows; IGNORE_INDEX where there is no loss.
        segment_ids: [B, T] int64 document number within the row, or None where attention may cross
            documents.
    """

    input_ids: Tensor
    targets: Tensor
    segment_ids: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_targets(self) -> int:
        """Tokens with a loss."""
        return int((self.targets != IGNORE_INDEX).sum())

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows."""
        for start in range(0, len(self), rows):
            part = slice(start, start + rows)
            segments = None if self.segment_ids is None else self.segment_ids[part]
            yield Batch(self.input_ids[part], self.targets[part], segments)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        segments = None if self.segment_ids is None else self.segment_ids.to(device)
        return Batch(self.input_ids.to(device), self.targets.to(device), segments)


class _Source:
    """One corpus as an endless shuffled sequence of windows."""

    def __init__(self, corpus: Corpus, seq_len: int, seed: int) -> None:
        if corpus.n_tokens < 2:
            raise DataError(f"{corpus.folder} holds {corpus.n_tokens} tokens; training needs two")
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed
        # an epoch's windows start at an offset below seq_len: one window is given up for that
        self.per_epoch = max(1, (corpus.n_tokens - 1) // seq_len - 1)
        self._epoch = -1

    def starts(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Start positions of windows number first … first + count - 1 of the endless sequence."""
        out = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, place = divmod(first + done, self.per_epoch)
            take = min(count - done, self.per_epoch - place)
            if epoch != self._epoch:
                self._epoch = epoch
                self._order = Permutation(self.per_epoch, self.seed, epoch)
                room = max(0, self.corpus.n_tokens - 1 - self.per_epoch * self.seq_len)
                spread = min(room, self.seq_len) + 1
                self._offset = int(Permutation(spread, self.seed, epoch, 1)(0)[0])
            places = self._order(np.arange(place, place + take))
            out[done : done + take] = places * self.seq_len + self._offset
            done += take
        return out


class BatchStream:
    """Endless shuffled batches over one corpus or a weighted mix of several.

    Every window of an epoch is seen once, in an order that depends on the seed and the epoch alone;
    the cuts between windows move from epoch to epoch. Of a mix, row number r comes from the corpus
    that is furthest behind its share, so shares are exact to one row at any time.

    Args:
        corpora: A corpus, or (corpus, weight) pairs.
        batch_size: B.
        seq_len: T.
        seed: Of the order.
        mask_documents: Give `segment_ids`, and no loss for the first token of a document.
    """

    def __init__(
        self,
        corpora: Corpus | Sequence[tuple[Corpus, float]],
        *,
        batch_size: int,
        seq_len: int,
        seed: int = 0,
        mask_documents: bool = False,
    ) -> None:
        pairs = [(corpora, 1.0)] if isinstance(corpora, Corpus) else list(corpora)
        if not pairs or any(not weight > 0 for _, weight in pairs):
            raise DataError("a mix needs at least one corpus, and every weight above zero")
        total = sum(weight for _, weight in pairs)
        self._sources = [_Source(c, seq_len, seed + i) for i, (c, _) in enumerate(pairs)]
        self._shares = [weight / total for _, weight in pairs]
        self.batch_size, self.seq_len, self.mask_documents = batch_size, seq_len, mask_documents
        self._drawn = [0] * len(pairs)

    def __iter__(self) -> BatchStream:
        return self

    def __next__(self) -> Batch:
        plan = self._assign()
        rows: list[npt.NDArray[Any]] = []
        for source, count, drawn in zip(self._sources, plan, self._drawn, strict=True):
            for start in source.starts(drawn, count) if count else ():
                rows.append(_row(source.corpus, int(start), self.seq_len))
        self._drawn = [d + c for d, c in zip(self._drawn, plan, strict=True)]
        eos_id = self._sources[0].corpus.manifest.eos_id
        return _batch(np.stack(rows), self.mask_documents, eos_id)

    @property
    def epoch(self) -> float:
        """Passes over the corpus that has been repeated most."""
        return max(d / s.per_epoch for d, s in zip(self._drawn, self._sources, strict=True))

    def state(self) -> dict[str, Any]:
        """Position: windows drawn from each corpus; JSON-ready."""
        return {"drawn": list(self._drawn)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken.

        Raises:
            RunError: It belongs to another number of corpora.
        """
        drawn = state.get("drawn")
        if not isinstance(drawn, list) or len(drawn) != len(self._sources):
            raise RunError("the saved position in the data does not fit this mix of corpora")
        self._drawn = [int(d) for d in drawn]

    def _assign(self) -> list[int]:
        """Rows that each corpus gives to the next batch."""
        if len(self._sources) == 1:
            return [self.batch_size]
        counts = [0] * len(self._sources)
        total = sum(self._drawn)
        for row in range(self.batch_size):
            due = [
                share * (total + row + 1) - drawn - count
                for share, drawn, count in zip(self._shares, self._drawn, counts, strict=True)
            ]
            counts[max(range(len(due)), key=due.__getitem__)] += 1
        return counts


def windows(
    corpus: Corpus,
    seq_len: int,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    mask_documents: bool = False,
    max_tokens: int | None = None,
) -> Iterator[Batch]:
    """Every token of a corpus but the first, predicted exactly once, in order.

    Args:
        corpus: What to score.
        seq_len: T, the longest context.
        stride: New targets a window; with stride < seq_len each target sees at least
            seq_len - stride tokens before it. seq_len when None: separate windows.
        batch_size: Rows a batch.
        mask_documents: As in `BatchStream`.
        max_tokens: Stop after about this many targets.
    """
    stride = stride or seq_len
    assert 1 <= stride <= seq_len
    last = corpus.n_tokens - 1  # number of targets
    if max_tokens is not None:
        last = min(last, max_tokens)
    rows: list[npt.NDArray[Any]] = []
    fresh: list[int] = []  # targets of a row that no earlier row has scored
    done = 0
    while done < last:
        end = min(last, seq_len if done == 0 else done + stride)
        start = max(0, end - seq_len)
        rows.append(_row(corpus, start, seq_len))
        fresh.append(end - done)
        over = start + seq_len - end  # beyond the end (or `max_tokens`)
        if over > 0:
            rows[-1][seq_len + 1 - over :] = IGNORE_INDEX
        done = end
        if len(rows) == batch_size or done >= last:
            batch = _batch(np.stack(rows), mask_documents, corpus.manifest.eos_id)
            for row, count in enumerate(fresh):
                scored = int((rows[row][1:] != IGNORE_INDEX).sum())
                batch.targets[row, : scored - count] = IGNORE_INDEX
            yield batch
            rows, fresh = [], []


def _row(corpus: Corpus, start: int, seq_len: int) -> npt.NDArray[np.int64]:
    """seq_len + 1 tokens from `start`; IGNORE_INDEX beyond the end of the corpus."""
    row = np.full(seq_len + 1, IGNORE_INDEX, np.int64)
    ids = corpus.tokens(start, min(start + seq_len + 1, corpus.n_tokens))
    row[: len(ids)] = ids
    return row


def _batch(rows: npt.NDArray[np.int64], mask_documents: bool, eos_id: int) -> Batch:
    """Inputs and shifted targets of rows [B, T + 1]."""
    tokens = torch.from_numpy(rows)
    targets = tokens[:, 1:].clone()
    input_ids = tokens[:, :-1].clamp_min(0)  # beyond the end any token will do: it has no target
    if not mask_documents:
        return Batch(input_ids, targets)
    ended = (tokens[:, :-1] == eos_id).long()
    segments = ended.cumsum(1) - ended  # a document's end-of-text still belongs to it
    targets[ended.bool()] = IGNORE_INDEX
    return Batch(input_ids, targets, segments)
