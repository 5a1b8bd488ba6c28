"""Keys and values of many texts in pages of one memory, and attention over them.

The tokens that several texts read in one step stand side by side in one row, [1, N]: what follows
each text's own past is told by a `Layout`. Which page belongs to whom is decided elsewhere
(`inference/scheduler.py`). Shapes: N tokens of R texts, P pages of the longest, H heads, K kv
heads, E head_dim, S tokens of a text, old and new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.nn.cache import Cache

PAGE_SIZE = 16  # tokens of a page


@dataclass(frozen=True)
class Layout:
    """Where the tokens of one step belong.

    Attributes:
        starts: Tokens that each text has read before: R numbers.
        counts: New tokens of each: R numbers, N in all.
        tables: [R, P] int64, the pages of each text; 0 where it has fewer.
        before: The last tokens ahead of the new ones, of each text: for families that look back at
            tokens and not at states.
        adapters: What each text is read with (`nn/adapters.py`), counted from 1; 0 for nothing. ()
            for nothing of all.
    """

    starts: tuple[int, ...]
    counts: tuple[int, ...]
    tables: Tensor
    before: tuple[tuple[int, ...], ...]
    adapters: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        starts: Sequence[int],
        counts: Sequence[int],
        pages: Sequence[Sequence[int]],
        before: Sequence[Sequence[int]],
        device: torch.device,
        adapters: Sequence[int] = (),
    ) -> Layout:
        """From plain lists, one entry a text."""
        widest = max(map(len, pages))
        tables = [[*numbers, *[0] * (widest - len(numbers))] for numbers in pages]
        return cls(
            tuple(starts), tuple(counts), torch.tensor(tables, device=device),
            tuple(tuple(ids) for ids in before), tuple(adapters),
        )  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """S of each text."""
        return [a + n for a, n in zip(self.starts, self.counts, strict=True)]

    @property
    def positions(self) -> Tensor:
        """[N] int64, the place of each token in its text."""
        device = self.tables.device
        runs = zip(self.starts, self.counts, strict=True)
        return torch.cat([torch.arange(a, a + n, device=device) for a, n in runs])

    @property
    def rows(self) -> Tensor:
        """[N] int64, which text each token belongs to."""
        counts = torch.tensor(self.counts, device=self.tables.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts)

    @property
    def adapter_rows(self) -> Tensor | None:
        """[N] int64, the adapter of each token; None where nothing is read with any."""
        if not any(self.adapters):
            return None
        return torch.tensor(self.adapters, device=self.tables.device)[self.rows]

    def earlier(self, ids: Tensor, n: int) -> Tensor:
        """[N] int64, the token `n` places before each of the new ones `ids` [N]; -1 for none."""
        known = torch.full((len(self.counts), n), -1, device=ids.device)
        for row, tokens in enumerate(self.before):
            last = torch.tensor(tokens[-n:], dtype=torch.long, device=ids.device)
            known[row, n - len(last) :] = last
        runs = zip(known, ids.split(self.counts), strict=True)
        return torch.cat([torch.cat((past, new))[: len(new)] for past, new in runs])


class LaidOut(Cache):
    """A cache of many texts in pages.

    Attributes:
        layout: Of the tokens that are being read.
        page_size: Tokens of a page.
        rewinds: Whether tokens can be forgotten again, and equal beginnings read once for all.
    """

    layout: Layout
    page_size: int
    rewinds: bool

    def begin(self, layout: Layout) -> None:
        """The next pass of the model reads these tokens."""
        self.layout = layout


class PagedCache(LaidOut):
    """Keys and values of every layer.

    Args:
        n_layers: Layers of the model.
        n_pages: Pages.
        n_kv_heads: K.
        head_dim: E.
        dtype: Of keys and values: the model's compute dtype.
        device: Where they live.

    Attributes:
        keys: Of each layer [pages, K, PAGE_SIZE, E].
        values: The same.
    """

    page_size = PAGE_SIZE
    rewinds = True

    def __init__(
        self,
        n_layers: int,
        n_pages: int,
        n_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (n_pages, n_kv_heads, PAGE_SIZE, head_dim)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self._places: tuple[Tensor, Tensor] | None = None

    def begin(self, layout: Layout) -> None:
        super().begin(layout)
        self._places = None

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the new tokens of one layer and give all its pages.

        Args:
            layer: Which layer.
            keys: [1, K, N, E].
            values: [1, K, N, E].

        Returns:
            `keys` and `values` of the layer.
        """
        if self._places is None:
            positions, layout = self.layout.positions, self.layout
            pages = layout.tables[layout.rows, positions // PAGE_SIZE]
            self._places = pages, positions % PAGE_SIZE
        pages, offsets = self._places
        self.keys[layer][pages, :, offsets] = keys[0].transpose(0, 1)
        self.values[layer][pages, :, offsets] = values[0].transpose(0, 1)
        return self.keys[layer], self.values[layer]


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    layout: Layout,
    *,
    window: int | None = None,
    biases: Sequence[Tensor] | None = None,
    scale: float | None = None,
) -> Tensor:
    """Every token looks at its own text, itself and what is before it.

    Texts that read one token each are taken together; runs of more tokens one by one.

    Args:
        q: [1, H, N, E].
        keys: [pages, K, PAGE_SIZE, E].
        values: The same.
        layout: Whose tokens these are.
        window: A token sees itself and `window` − 1 before it.
        biases: Of each text [1, H, its new tokens, S], added to the scores.
        scale: 1/√E unless given.

    Returns:
        [1, N, H·E].
    """
    queries = q[0].transpose(0, 1)  # [N, H, E]
    out = torch.empty_like(queries)
    single = [row for row, n in enumerate(layout.counts) if n == 1 and biases is None]
    first = [0]
    for n in layout.counts:
        first.append(first[-1] + n)
    options: dict[str, Any] = {"scale": scale, "enable_gqa": q.shape[1] != keys.shape[1]}
    if single:
        places = torch.tensor([first[row] for row in single], device=q.device)
        lengths = torch.tensor([layout.starts[row] + 1 for row in single], device=q.device)
        n_pages = -(-int(max(layout.starts[row] + 1 for row in single)) // PAGE_SIZE)
        tables = layout.tables[torch.tensor(single, device=q.device), :n_pages]
        k, v = gather(keys, tables), gather(values, tables)
        column = torch.arange(k.shape[2], device=q.device)
        seen = column < lengths[:, None]
        if window is not None:
            seen &= column >= lengths[:, None] - window
        mixed = F.scaled_dot_product_attention(
            queries[places][:, :, None], k, v, attn_mask=seen[:, None, None], **options
        )
        out[places] = mixed[:, :, 0]
    for row, n in enumerate(layout.counts):
        if n == 1 and biases is None:
            continue
        start = layout.starts[row]
        total = start + n
        tables = layout.tables[row : row + 1, : -(-total // PAGE_SIZE)]
        k, v = gather(keys, tables)[:, :, :total], gather(values, tables)[:, :, :total]
        column = torch.arange(total, device=q.device)
        line = column[start:, None]
        mask = column <= line
        if window is not None:
            mask &= column > line - window
        if biases is not None:
            mask = biases[row].masked_fill(~mask, float("-inf"))
        part = slice(first[row], first[row + 1])
        mixed = F.scaled_dot_product_attention(q[:, :, part], k, v, attn_mask=mask, **options)
        out[part] = mixed[0].transpose(0, 1)
    return out.flatten(1)[None]


def gather(pages: Tensor, tables: Tensor) -> Tensor:
    """What stands in some pages, one after the other: [..., K, PAGE_SIZE, E] → [R, K, S, E]."""
    return pages[tables].transpose(1, 2).flatten(2, 3)
