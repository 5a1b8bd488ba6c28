"""Keys and values of the tokens already read, so that a new token costs one step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from inkstone.errors import ModelError


class Cache:
    """What a causal model keeps of the tokens that it has read."""

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Take the newest keys and values [B, K, T, E] of a layer; give all that may be seen."""
        raise NotImplementedError


class KVCache(Cache):
    """Preallocated keys and values of every layer; columns are filled from the left.

    Rows of unequal length are padded on the left, so that all of them grow at the same column;
    `real` remembers which columns hold tokens, and `lengths` how many each row has.

    Args:
        n_layers: Layers of the model.
        batch: Rows B.
        n_kv_heads: Heads K of keys and values.
        head_dim: E.
        capacity: Columns S that are allocated, in tokens.
        dtype: Of keys and values: the model's compute dtype.
        device: Where they live.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, n_kv_heads, capacity, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.real = torch.ones(batch, capacity, dtype=torch.bool, device=device)
        self.length = 0
        self.padded = False

    @property
    def capacity(self) -> int:
        """Columns that are allocated."""
        return self.real.shape[1]

    @property
    def batch(self) -> int:
        """Rows B."""
        return self.real.shape[0]

    @property
    def lengths(self) -> Tensor:
        """Real tokens of each row: [B] int64."""
        return self.real[:, : self.length].sum(1)

    def reserve(self, n_new: int, real: Tensor | None = None) -> None:
        """Open `n_new` columns; every layer then fills them with one `update`.

        Args:
            n_new: New columns T.
            real: [B, T] bool, False where a new column is padding; None when all are tokens.

        Raises:
            ModelError: The columns do not fit the capacity.
        """
        if self.length + n_new > self.capacity:
            raise ModelError(
                f"the cache holds {self.capacity} tokens; {self.length} are in use and "
                f"{n_new} more do not fit",
                fix="make the cache larger or the prompt shorter",
            )
        if real is not None:
            self.real[:, self.length : self.length + n_new] = real
            self.padded = True
        self.length += n_new

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest T columns of one layer and give all columns so far.

        Args:
            layer: Which layer.
            keys: [B, K, T, E].
            values: [B, K, T, E].

        Returns:
            Views [B, K, S, E] of keys and values, S = `length`.
        """
        new = slice(self.length - keys.shape[2], self.length)
        self.keys[layer][:, :, new] = keys
        self.values[layer][:, :, new] = values
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def take(self, rows: Tensor) -> KVCache:
        """A separate cache whose row i is a copy of row `rows[i]`: many answers to one context."""
        other = copy.copy(self)
        in_place = len(rows) == self.batch  # `reorder` then writes into what it is given
        other.keys = [old.clone() if in_place else old for old in self.keys]
        other.values = [old.clone() if in_place else old for old in self.values]
        other.reorder(rows)
        return other

    def reorder(self, rows: Tensor) -> None:
        """Row i becomes what row `rows[i]` was: beams, or (fewer rows) dropping finished ones."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                if len(rows) == self.batch:
                    old[:, :, : self.length] = old[rows, :, : self.length]
                else:
                    tensors[layer] = old[rows]
        self.real = self.real[rows]

    def drop_padding(self) -> None:
        """Move everything left by the columns that are padding in every row."""
        real = self.real[:, : self.length]
        spare = int(real.long().argmax(1).min()) if self.padded and self.length else 0
        if not spare:
            return
        kept = self.length - spare
        for tensor in (*self.keys, *self.values):
            tensor[:, :, :kept] = tensor[:, :, spare : self.length].clone()
        self.real[:, :kept] = real[:, spare:].clone()
        self.truncate(kept)

    def truncate(self, length: int) -> None:
        """Forget all columns from `length` on."""
        assert 0 <= length <= self.length
        self.real[:, length : self.length] = True
        self.length = length
        self.padded = self.padded and not bool(self.real[:, :length].all())


class MemoryCache(KVCache):
    """The cache of a decoder that also looks at an encoder's memory.

    Keys and values of the memory are computed once, in the first step, and kept by layer.
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(n_layers, batch, n_kv_heads, head_dim, capacity, dtype, device)
        self.memory: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

    def reorder(self, rows: Tensor) -> None:
        """As for the decoder's own columns: row i becomes what row `rows[i]` was."""
        super().reorder(rows)
        self.memory = [
            None if pair is None else (pair[0][rows], pair[1][rows]) for pair in self.memory
        ]
