"""Only real tokens, without the padding that makes rows equally long.

Linear maps, norms and feed-forward parts treat every token alike, so they run over the N tokens of
a batch instead of its B·T places; only attention lays the rows out again. On a CPU a few places of
padding come along behind the tokens, so that N is a size for which a kernel exists already.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.nn.matmul import regular


@dataclass(frozen=True, slots=True)
class Packing:
    """Which places of a batch hold tokens.

    Attributes:
        batch: B.
        length: T.
        real: [B, T] bool; None when every place holds a token.
        index: [N] int64, the tokens' places in row-major order and then those of some padding;
            None when `real` is.
        n_tokens: Without the padding.
        device: Of the ids.
    """

    batch: int
    length: int
    device: torch.device
    real: Tensor | None
    index: Tensor | None
    n_tokens: int

    @classmethod
    def of(cls, ids: Tensor, attention_mask: Tensor | None) -> Packing:
        """From ids [B, T] and a mask [B, T] that is True (or 1) at tokens.

        Raises:
            ModelError: The mask has another shape than the ids.
        """
        batch, length = ids.shape
        if attention_mask is None:
            return cls(batch, length, ids.device, None, None, batch * length)
        if attention_mask.shape != ids.shape:
            raise ModelError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, "
                f"but the batch is {tuple(ids.shape)}"
            )
        real = attention_mask.bool()
        if bool(real.all()):
            return cls(batch, length, ids.device, None, None, batch * length)
        index = real.flatten().nonzero().squeeze(1)
        n_tokens = len(index)
        if ids.device.type == "cpu":
            padding = (real.any(1, keepdim=True) & ~real).flatten().nonzero().squeeze(1)
            index = torch.cat((index, padding[: regular(n_tokens) - n_tokens]))
        return cls(batch, length, ids.device, real, index, n_tokens)

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] → [N, ...]."""
        flat = x.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """[N, ...] → [B, T, ...], zeros where there is no token."""
        if self.index is None:
            return x.unflatten(0, (self.batch, self.length))
        out = x.new_zeros(self.batch * self.length, *x.shape[1:])
        places, tokens = self.index[: self.n_tokens], x[: self.n_tokens]
        return out.index_copy(0, places, tokens).unflatten(0, (self.batch, self.length))

    def first(self) -> Tensor:
        """[B] index into the packed tokens of the first one of each row.

        Raises:
            ModelError: A row has no token.
        """
        if self.real is None:
            return torch.arange(self.batch, device=self.device) * self.length
        counts = self.real.sum(1)
        if not bool(counts.all()):
            raise ModelError("a row of the batch holds no token at all")
        return counts.cumsum(0) - counts

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the tokens of each row: [N, D] → [B, D]; errors as in `first`."""
        if self.real is None:
            return self.unpack(x).mean(1)
        self.first()
        counts = self.real.sum(1, keepdim=True)
        return self.unpack(x).sum(1) / counts.to(x.dtype)
