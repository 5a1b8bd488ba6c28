"""Attention on a CPU, block of queries by block of queries, through batched matmuls.

The CPU kernel behind `F.scaled_dot_product_attention` multiplies in bf16 only with AMX, and then
only forwards well; elsewhere in fp32 whatever it is given. On a machine with bf16 instructions, the
same sums as batched bf16 matmuls take a third of the time. In causal attention a block of queries
needs only the keys up to its end, which spares half of the work.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

BLOCK = 128  # queries
KEEP_UP_TO = 512  # tokens; the probabilities of longer rows are computed again in the backward pass


def pays(q: Tensor, k: Tensor, both_ways: bool = False) -> bool:
    """Whether this is the faster way for these queries [B, H, T, E] and keys [B, K, S, E]."""
    if q.device.type != "cpu" or q.shape[2] == 1 or not (both_ways or q.shape[2] == k.shape[2]):
        return False
    if q.dtype == torch.bfloat16 and not _has_amx():
        return True
    return q.requires_grad and torch.is_grad_enabled() and q.shape[2] <= KEEP_UP_TO


@functools.cache
def _has_amx() -> bool:
    """Whether this processor has the matrix registers that torch's own kernel makes use of."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(supported())


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, both_ways: bool = False
) -> Tensor:
    """Attention of T queries over S keys, causal (S = T) unless `both_ways`.

    Args:
        q: [B, H, T, E].
        k: [B, K, S, E].
        v: [B, K, S, E].
        mask: [B or 1, 1, T or 1, S] bool, itself causal where attention is; None lets through all.
        both_ways: Whether queries see later keys too.

    Returns:
        [B, T, H·E].
    """
    out: Tensor = _Blockwise.apply(q, k, v, mask, both_ways)
    return out


class _Blockwise(torch.autograd.Function):
    """Below, G = H / K query heads share a key head; they are stacked along time, so that each of
    the B·K matmuls takes the queries of all of them at once."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, both_ways: bool
    ) -> Tensor:
        (batch, n_heads, length, width), (n_kv, n_keys) = q.shape, k.shape[1:3]
        shared = n_heads // n_kv
        q = q.reshape(batch * n_kv, shared, length, width)
        k, v = k.reshape(-1, n_keys, width), v.reshape(-1, n_keys, width)
        out = torch.empty(batch, length, n_heads * width, dtype=q.dtype)
        by_head = out.view(batch, length, n_kv, shared, width).permute(0, 2, 3, 1, 4)
        keep = length <= KEEP_UP_TO and any(ctx.needs_input_grad)
        kept = []
        for block in _blocks(length):
            seen = n_keys if both_ways else block.stop
            p = _probabilities(q, k, mask, block, seen, causal=not both_ways)
            part = torch.bmm(p, v[:, :seen])
            by_head[:, :, :, block] = part.view(batch, n_kv, shared, -1, width)
            if keep:
                kept.append(p)
        ctx.save_for_backward(q, k, v, mask, *kept)
        ctx.batch, ctx.both_ways = batch, both_ways
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, mask, *kept = ctx.saved_tensors
        _, shared, length, width = q.shape
        by_head = d_out.view(ctx.batch, length, -1, shared, width).permute(0, 2, 3, 1, 4)
        by_head = by_head.reshape(q.shape)
        d_q = torch.empty_like(q)
        d_k = d_v = None
        blocks = _blocks(length)
        for i in reversed(range(len(blocks))):
            block = blocks[i]
            seen = k.shape[1] if ctx.both_ways else block.stop
            if kept:
                p = kept[i]
            else:
                p = _probabilities(q, k, mask, block, seen, causal=not ctx.both_ways)
            d_part = by_head[:, :, block].flatten(1, 2)
            d_p = torch.bmm(d_part, v[:, :seen].mT)
            d_score = torch._softmax_backward_data(d_p, p, -1, p.dtype).mul_(width**-0.5)
            d_q[:, :, block] = torch.bmm(d_score, k[:, :seen]).unflatten(1, (shared, -1))
            of_k = torch.bmm(d_score.mT, q[:, :, block].flatten(1, 2))
            of_v = torch.bmm(p.mT, d_part)
            if d_k is None or d_v is None:  # the last block sees all keys
                d_k, d_v = of_k, of_v
            else:
                d_k[:, :seen] += of_k
                d_v[:, :seen] += of_v
        assert d_k is not None and d_v is not None
        of_q, of_keys = (ctx.batch, -1, length, width), (ctx.batch, -1, k.shape[1], width)
        return d_q.view(of_q), d_k.view(of_keys), d_v.view(of_keys), None, None


def _blocks(length: int) -> list[slice]:
    return [slice(a, min(a + BLOCK, length)) for a in range(0, length, BLOCK)]


def _probabilities(
    q: Tensor, k: Tensor, mask: Tensor | None, block: slice, seen: int, *, causal: bool
) -> Tensor:
    """Rows of the softmax: [B·K, G·block, seen]."""
    shared, width = q.shape[1], q.shape[3]
    queries, keys = q[:, :, block].flatten(1, 2), k[:, :seen].mT
    if mask is None and causal:
        hide = _future(block.start, block.stop, shared, q.dtype)
        return torch.softmax(torch.baddbmm(hide, queries, keys, alpha=width**-0.5), -1)
    nothing = queries.new_empty(1, 1, 1)
    scores = torch.baddbmm(nothing, queries, keys, beta=0, alpha=width**-0.5)
    if mask is not None:
        rows = block if mask.shape[2] > 1 else slice(None)
        visible = mask[:, :, None, rows, :seen]  # [B or 1, 1, 1, block or 1, seen]
        by_head = scores.view(len(mask), -1, shared, queries.shape[1] // shared, seen)
        by_head.masked_fill_(~visible, float("-inf"))
    return torch.softmax(scores, -1)


@functools.lru_cache(maxsize=64)
def _future(start: int, stop: int, shared: int, dtype: torch.dtype) -> Tensor:
    """0 where query start + i may see key j, −∞ in its future: [G·block, stop]."""
    hide = torch.full((stop - start, stop), float("-inf"), dtype=dtype).triu_(start + 1)
    return hide.repeat(shared, 1)
