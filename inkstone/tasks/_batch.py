"""Rows of encoded examples as tensors: the batch that every task on labelled examples makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inkstone.nn.loss import IGNORE_INDEX

ALIGN = 8  # columns: attention kernels lose speed on odd lengths


@dataclass(frozen=True)
class TokenBatch:
    """Examples side by side, padded at the end.

    Attributes:
        input_ids: [B, T] int64.
        targets: What is to be predicted: [B] one label an example, [B, T] one a token, [B, K] one a
            part (IGNORE_INDEX where there is none), or float [B, L] which of L labels hold.
        attention_mask: [B, T] bool, False at padding; None where there is none.
        token_types: [B, T] 0 for a first text and 1 for a second; None where there is one text.
        source_ids: [B, S] what a decoder reads; None without one.
        source_mask: [B, S] bool.
        characters: [B, T, C] ids of each token's characters, 0 at padding; None where unused.
        segment_ids: [B, T] which of several texts in its row a token is of; None where each row
            holds one.
        candidates: [B, T] bool, places that an answer may begin or end at; None where unused.
        spans: [B, K, 2] first and last token of all right answers, of which the target is one;
            IGNORE_INDEX where there is none; None where unused.
    """

    input_ids: Tensor
    targets: Tensor
    attention_mask: Tensor | None = None
    token_types: Tensor | None = None
    source_ids: Tensor | None = None
    source_mask: Tensor | None = None
    characters: Tensor | None = None
    segment_ids: Tensor | None = None
    candidates: Tensor | None = None
    spans: Tensor | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def n_targets(self) -> int:
        """Labels to predict; examples where each has several."""
        if self.targets.is_floating_point():
            return len(self)
        return int((self.targets != IGNORE_INDEX).sum())

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What an encoder's forward takes, without what is absent."""
        given = {
            "input_ids": self.input_ids, "attention_mask": self.attention_mask,
            "token_types": self.token_types, "characters": self.characters,
        }  # fmt: skip
        return {name: tensor for name, tensor in given.items() if tensor is not None}

    def split(self, rows: int) -> Iterator[Self]:
        """Micro-batches of at most `rows` rows."""
        for start in range(0, len(self), rows):
            yield self._map(lambda tensor, part=slice(start, start + rows): tensor[part])

    def to(self, device: torch.device | str) -> Self:
        """The same batch on a device."""
        return self._map(lambda tensor: tensor.to(device))

    def _map(self, change: Any) -> Self:
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return type(self)(**{name: change(value) for name, value in fields.items()})


def pad(rows: Sequence[npt.ArrayLike], value: int) -> tuple[Tensor, Tensor]:
    """Rows of unequal lengths as [B, T], filled up with `value`, and the mask of what is real."""
    arrays = [np.asarray(row, np.int64) for row in rows]
    longest = max((len(row) for row in arrays), default=0)
    width = max(ALIGN, -(-longest // ALIGN) * ALIGN)
    ids = np.full((len(arrays), width), value, np.int64)
    mask = np.zeros((len(arrays), width), bool)
    for number, row in enumerate(arrays):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = True
    return torch.from_numpy(ids), torch.from_numpy(mask)
