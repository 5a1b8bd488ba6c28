"""Who may look at whom, and scaled dot-product attention over it.

`View.of` decides once a forward pass, for all layers, what each token sees. A mask tensor exists
only where one is needed; plain causal text takes the kernel's own fast path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from inkstone.errors import ModelError
from inkstone.nn import blockwise, compiled_attention, paged
from inkstone.nn.cache import Cache, KVCache
from inkstone.nn.linear import Linear
from inkstone.nn.packing import Packing
from inkstone.nn.paged import LaidOut, Layout
from inkstone.nn.pointwise import narrow
from inkstone.nn.positions import check_length

ROW_COST = 1 << 16  # scores that are computed in the time that one more call takes


@dataclass(frozen=True, slots=True)
class View:
    """What the T tokens of one forward pass see.

    Attributes:
        positions: [T] or [B, T] int64.
        length: Every position is below this.
        mask: [B or 1, 1, T or 1, S] bool, True where a query may look; None when the two flags
            say it all.
        causal: Whether the kernel itself hides the future.
        both_ways: Whether a query may look ahead: in encoders, and at the memory of one.
        n_columns: S.
        layout: Where many texts stand side by side in one row, whose keys are in pages: what says
            it all, with `window`.
        window: There, a token sees itself and `window` − 1 before it; None for all.
    """

    positions: Tensor
    length: int
    mask: Tensor | None
    causal: bool
    both_ways: bool = False
    n_columns: int = 0
    layout: Layout | None = None
    window: int | None = None

    @classmethod
    def everything(
        cls, n_columns: int, real: Tensor | None, device: torch.device, window: int | None = None
    ) -> View:
        """Every query sees every column that holds a token, ahead and behind.

        Positions count real tokens, so padding on either side changes nothing.

        Args:
            n_columns: S.
            real: [B, S] bool; None when all columns are tokens.
            device: Where the ids are.
            window: A token sees this many columns to either side, and itself.
        """
        positions = torch.arange(n_columns, device=device)
        mask = None
        if window is not None and (_for_all_sizes() or window < n_columns - 1):
            mask = ((positions[:, None] - positions).abs() <= window)[None, None]
        if real is not None:
            positions = (real.long().cumsum(1) - 1).clamp_(min=0)
            mask = real[:, None, None] if mask is None else _and_itself(mask & real[:, None, None])
        return cls(positions, n_columns, mask, causal=False, both_ways=True, n_columns=n_columns)

    @classmethod
    def of(
        cls,
        input_ids: Tensor,
        *,
        max_seq_len: int,
        attention_mask: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        window: int | None = None,
    ) -> View:
        """Derive positions and visibility.

        Without a mask, positions count columns. With one they count real tokens, so padding on
        either side changes nothing; with segments they restart in each.

        Args:
            input_ids: [B, T].
            max_seq_len: Most columns the model may see.
            attention_mask: [B, S], True (or 1) at tokens, False at padding; S = cached + T.
            segment_ids: [B, T]; tokens see only their own segment.
            cache: Its new columns are reserved here. A `PagedCache` knows what the tokens see, and
                no other argument is used but `window`.
            positions: [B, T] or [T], to override the derived ones.
            window: Sliding window: a token sees itself and `window` − 1 before it.

        Raises:
            ModelError: Too long, or the arguments do not fit together.
        """
        if isinstance(cache, LaidOut):
            return cls._of_pages(cache.layout, max_seq_len, window)
        assert cache is None or isinstance(cache, KVCache)
        n_rows, n_new = input_ids.shape
        past = cache.length if cache is not None else 0
        total = past + n_new
        check_length(total, max_seq_len)
        if segment_ids is not None and cache is not None:
            raise ModelError("segment_ids and a cache cannot be used together")
        real = _real_columns(attention_mask, cache, n_rows, total, past)
        if cache is not None:
            cache.reserve(n_new, None if real is None else real[:, past:])
        length = total
        if positions is not None:
            length = max_seq_len
        elif segment_ids is not None:
            positions = _restarting(segment_ids)
        elif real is not None:
            positions = (real.long().cumsum(1) - 1).clamp_(min=0)[:, past:]
        else:
            positions = torch.arange(past, total, device=input_ids.device)
        narrow = window is not None and (_for_all_sizes() or window < total)
        if real is None and segment_ids is None and not narrow and (past == 0 or n_new == 1):
            return cls(positions, length, None, causal=n_new > 1, n_columns=total)

        row = torch.arange(past, total, device=input_ids.device)[:, None]
        column = torch.arange(total, device=input_ids.device)
        mask = column <= row
        if narrow:
            mask = mask & (column > row - window)  # type: ignore[operator]
        mask = mask[None]
        if segment_ids is not None:
            mask = mask & (segment_ids[:, :, None] == segment_ids[:, None, :])
        if real is not None:
            mask = (mask & real[:, None, :]) | (column == row)  # padding still sees itself
        return cls(positions, length, mask[:, None], causal=False, n_columns=total)

    @classmethod
    def _of_pages(cls, layout: Layout, max_seq_len: int, window: int | None) -> View:
        length = max(layout.lengths)
        check_length(length, max_seq_len)
        return cls(
            layout.positions, length, None, causal=False, n_columns=length, layout=layout,
            window=window,
        )  # fmt: skip

    def banded(self, window: int) -> View:
        """The same causal view, but a token sees only itself and `window` − 1 columns before it."""
        if self.layout is not None:
            return replace(self, window=window)
        if not _for_all_sizes() and window >= self.n_columns:
            return self
        column = torch.arange(self.n_columns, device=self.positions.device)
        row = column[-self.positions.shape[-1] :, None]
        mask = (column <= row) & (column > row - window)
        if self.mask is not None:
            mask = (mask & self.mask[:, 0])[:, None]  # padding sees itself here too
        return replace(self, mask=mask if mask.ndim == 4 else mask[None, None], causal=False)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    view: View,
    *,
    bias: Tensor | Sequence[Tensor] | None = None,
    scale: float | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + bias) v (Vaswani et al. 2017, eq. 1) over what `view` lets through.

    Args:
        q: [B, H, T, E].
        k: [B, K, S, E]; K divides H, each key head serves H / K query heads.
        v: [B, K, S, E].
        view: Visibility.
        bias: [1 or B, H, T, S], added to the scores: relative positions, for example. Of texts
            whose keys are in pages one each.
        scale: 1/√E unless given.

    Returns:
        [B, T, H·E].
    """
    if view.layout is not None:
        assert not isinstance(bias, Tensor)
        return paged.attend(q, k, v, view.layout, window=view.window, biases=bias, scale=scale)
    assert bias is None or isinstance(bias, Tensor)
    if bias is None and scale is None and blockwise.pays(q, k, view.both_ways):
        return blockwise.attend(q, k, v, view.mask, both_ways=view.both_ways)
    mask, causal = view.mask, view.causal
    if bias is not None:
        if causal:
            mask, causal = torch.ones_like(bias[0, 0], dtype=torch.bool).tril(), False
        mask = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out.transpose(1, 2).flatten(2)


def attend_packed(q: Tensor, k: Tensor, v: Tensor, packing: Packing, view: View) -> Tensor:
    """`attend` of the tokens of each row among themselves, for tokens without padding.

    Rows of unlike lengths are taken one by one where that spares enough; others side by side.

    Args:
        q, k, v: [N, H, E].
        packing: Where the tokens are.
        view: `View.everything`.

    Returns:
        [N, H·E].
    """
    windowed = view.mask is not None and view.mask.shape[2] > 1
    if not windowed and compiled_attention.fits(q, k, v, packing):
        return compiled_attention.attend(q, k, v, packing)
    lengths = [] if packing.real is None or windowed else packing.real.sum(1).tolist()
    spared = q.shape[1] * (len(lengths) * packing.length**2 - sum(n * n for n in lengths))
    if q.device.type == "cpu" and spared > len(lengths) * ROW_COST:
        everything, some = replace(view, mask=None), [n for n in lengths if n]
        n, padding = packing.n_tokens, len(q) - packing.n_tokens
        parts = (x[:n].transpose(0, 1)[None].split(some, 2) for x in (q, k, v))
        rows = [attend(a, b, c, everything)[0] for a, b, c in zip(*parts, strict=True)]
        return torch.cat((*rows, q.new_zeros(padding, q.shape[1] * v.shape[2])))
    q, k, v = (packing.unpack(x).transpose(1, 2) for x in (q, k, v))
    return packing.pack(attend(q, k, v, view))


def attend_once(
    q: Tensor, x: Tensor, keys: Linear, values: Linear, packing: Packing, view: View
) -> Tensor:
    """`attend` of one query a row to the tokens of its row, for tokens without padding.

    A query is as good a thing to map as a key, q · (W x + b) = (Wᵀ q) · x + q · b, and a weighted
    mean of values is a value of the mean. Of one query there are fewer than of tokens: neither
    keys nor values are made.

    Args:
        q: [B, H, E].
        x: [N, D], what keys and values are made of.
        keys, values: D → H·E, with biases.
        packing: Where the tokens are.
        view: `View.everything`, without a window.

    Returns:
        [B, H·E].
    """
    x = packing.unpack(x)  # [B, T, D]
    of_keys, of_values = (
        narrow([m.weight], x.dtype).unflatten(0, (q.shape[1], -1)) for m in (keys, values)
    )  # [H, E, D]
    scores = torch.bmm(q.transpose(0, 1), of_keys).transpose(0, 1) @ x.mT  # [B, H, T]
    if keys.bias is not None:  # the same for all tokens; here for its gradient
        scores = scores + (q * keys.bias.to(q.dtype).view_as(q[0])).sum(-1, keepdim=True)
    scores = scores * q.shape[2] ** -0.5
    if view.mask is not None:
        scores = scores.masked_fill(~view.mask[:, :, 0], float("-inf"))
    mean = torch.softmax(scores, -1) @ x  # [B, H, D]
    out = torch.bmm(mean.transpose(0, 1), of_values.mT).transpose(0, 1).flatten(1)
    return out if values.bias is None else out + values.bias.to(out.dtype)


def _for_all_sizes() -> bool:
    """Whether a graph is being made that must hold for every size and mask (torch.export)."""
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def _and_itself(mask: Tensor) -> Tensor:
    """Padding still sees itself: a row that sees nothing would be a division by zero."""
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)


def _real_columns(
    attention_mask: Tensor | None, cache: KVCache | None, n_rows: int, total: int, past: int
) -> Tensor | None:
    """[B, S] bool, or None when every column is a token."""
    if attention_mask is None:
        if cache is None or not cache.padded:
            return None
        real = cache.real[:, :total].clone()
        real[:, past:] = True
        return real
    if attention_mask.shape != (n_rows, total):
        raise ModelError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but the batch is "
            f"{(n_rows, total)} (rows, cached and new columns)"
        )
    real = attention_mask.bool()
    # On a GPU the question would make the CPU wait; there the mask is simply used.
    ask = real.device.type == "cpu" and not _for_all_sizes()
    return None if ask and bool(real.all()) else real


def _restarting(segment_ids: Tensor) -> Tensor:
    """Positions that restart at 0 wherever the segment changes: [B, T]."""
    column = torch.arange(segment_ids.shape[1], device=segment_ids.device).expand_as(segment_ids)
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    return column - torch.where(starts, column, 0).cummax(1).values
