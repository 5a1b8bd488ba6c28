"""The recurrences of `recurrence.cpp` (`native.py` compiles it); without it torch does the work."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from inkstone.nn import native
from inkstone.nn.matmul import lengthened
from inkstone.nn.steps import Steps

KINDS = ("rnn", "lstm", "gru")
BLOCK = 16  # rows, and columns of a tile: L of the source
NUMBERS = ("H", "n_steps", "reverse", "thread", "n_threads", "out_stride", "rows")
POINTERS = (
    "offsets", "x", "extra", "packed", "bias", "out", "h", "next", "state",
    "d_out", "h0", "c0", "dh", "dc", "d_bias", "scratch",
)  # fmt: skip


class Job(ctypes.Structure):
    """`Job` of the source, field by field."""

    _fields_ = tuple((name, ctypes.c_int64) for name in NUMBERS) + tuple(
        (name, ctypes.c_void_p) for name in POINTERS
    )


@functools.cache
def _has_bf16() -> bool:
    found = native.library("recurrence")
    return found is not None and found.recurrence_has_bf16() == 1


def fits(dtype: torch.dtype, device: torch.device, hidden_size: int) -> bool:
    """Whether `Recurrence` can do this here."""
    if device.type != "cpu" or torch.compiler.is_compiling() or hidden_size % (2 * BLOCK):
        return False
    if native.library("recurrence") is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bf16())


def run(kind: str, *, backward: bool, job: dict[str, Tensor | int | None], rows: int) -> None:
    """Run one direction of time over all steps, the rows shared out among torch's threads."""
    found = native.library("recurrence")
    assert found is not None
    x = job["x"]
    assert isinstance(x, Tensor)
    function = found.recurrence_bf16 if x.dtype == torch.bfloat16 else found.recurrence_fp32
    threads = max(1, min(torch.get_num_threads(), -(-rows // BLOCK)))
    plain = {k: v.data_ptr() if isinstance(v, Tensor) else v for k, v in job.items()}

    def part(thread: int) -> None:
        mine = Job(**plain, thread=thread, n_threads=threads, rows=rows)
        failed = function(KINDS.index(kind), int(backward), ctypes.byref(mine))
        assert not failed

    native.share(part, threads)


def pack(matrix: Tensor) -> Tensor:
    """A matrix as the source multiplies with it.

    Args:
        matrix: [K, groups, W, 16]: W column tiles are multiplied together.

    Returns:
        [groups, K, W, 16], and in bf16 [groups, K/32, W, 16, 16, 2].
    """
    if matrix.dtype == torch.float32:
        return matrix.permute(1, 0, 2, 3).contiguous()
    pairs = matrix.unflatten(0, (-1, BLOCK, 2))  # [K/32, 16, 2, groups, W, 16]
    return pairs.permute(3, 0, 4, 1, 5, 2).contiguous()


def pack_forward(weight: Tensor, gates: int) -> Tensor:
    """Weight [G·H, H], for h Wᵀ: a group holds 16 units of every gate."""
    tiles = weight.T.unflatten(1, (gates, -1, BLOCK))
    return pack(tiles.transpose(1, 2))


def pack_backward(weight: Tensor) -> Tensor:
    """Weight [G·H, H], for g W: groups of 64 units, and one of 32 where they do not come out."""
    columns = weight.shape[1] // (4 * BLOCK) * 4 * BLOCK
    whole, rest = weight[:, :columns], weight[:, columns:]
    parts = [pack(whole.unflatten(1, (-1, 4, BLOCK))).flatten()] if columns else []
    if rest.shape[1]:
        parts.append(pack(rest.unflatten(1, (-1, 2, BLOCK))).flatten())
    return torch.cat(parts)


class Recurrence(torch.autograd.Function):
    """One cell over whole sequences: outputs and last states; gradients by hand.

    Its activations become gradients in place, so the backward pass can be taken only once.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        w_x: Tensor,
        b_x: Tensor,
        w_h: Tensor,
        b_h: Tensor | None,
        h0: Tensor,
        c0: Tensor | None,
        steps: Steps,
        kind: str,
        reverse: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[N, D] and states [R, H] in the order of the steps → [N, H], [R, H], [R, H] or None."""
        size, first, dtype = w_h.shape[1], steps.sizes[0], x.dtype
        gates = len(w_h) // size
        room = -(-first // BLOCK) * BLOCK

        def padded(state: Tensor, dtype: torch.dtype) -> Tensor:
            return torch.nn.functional.pad(state[:first].to(dtype), (0, 0, 0, room - first))

        x = lengthened(x)
        pre = torch.addmm(b_x, x, w_x.T)
        out = x.new_empty(steps.n_tokens, size)
        extra = x.new_empty(len(x), size) if kind != "rnn" else None
        start = padded(h0, dtype)
        state = padded(h0 if c0 is None else c0, torch.float32)
        last_state = state.clone()
        bias = None if b_h is None else b_h.float()
        job: dict[str, Tensor | int | None] = {
            "H": size, "n_steps": len(steps.sizes), "reverse": int(reverse), "out_stride": size,
            "offsets": steps.offsets, "x": pre, "extra": extra, "bias": bias, "out": out,
            "packed": pack_forward(w_h, gates), "h": start.clone(), "next": start.clone(),
            "state": last_state,
        }  # fmt: skip
        run(kind, backward=False, job=job, rows=first)
        last = torch.arange(first) if reverse else steps.last
        h_n, c_n = h0.to(dtype, copy=True), None
        h_n[:first] = out[last]
        if c0 is not None:
            c_n = c0.to(dtype, copy=True)
            c_n[:first] = last_state[:first].to(dtype)
        ctx.save_for_backward(x, w_x, w_h, out, start, state, pre, extra)
        ctx.about, ctx.taken = (steps, kind, reverse), False
        ctx.set_materialize_grads(False)
        return out, h_n, c_n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, d_out: Tensor | None, d_h: Tensor | None, d_c: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if ctx.taken:
            raise RuntimeError("the gradients of a recurrence can be taken only once")
        ctx.taken = True
        x, w_x, w_h, out, start, state, pre, extra = ctx.saved_tensors
        steps, kind, reverse = ctx.about
        size, first, room = w_h.shape[1], steps.sizes[0], len(start)
        n = steps.n_sequences

        def padded(gradient: Tensor | None) -> Tensor:
            result = torch.zeros(max(room, n), size)
            if gradient is not None:
                result[:n] = gradient
            return result

        dh, dc = padded(d_h), padded(d_c)
        d_bias = torch.zeros(max(1, torch.get_num_threads()), 2, len(w_h))
        job: dict[str, Tensor | int | None] = {
            "H": size, "n_steps": len(steps.sizes), "reverse": int(reverse), "out_stride": size,
            "offsets": steps.offsets, "x": pre, "extra": extra, "out": out,
            "packed": pack_backward(w_h), "d_out": None if d_out is None else d_out.contiguous(),
            "h0": start, "c0": state, "dh": dh, "dc": dc, "d_bias": d_bias,
            "scratch": x.new_empty(room, len(w_h)),
        }  # fmt: skip
        run(kind, backward=True, job=job, rows=first)
        d_bias = d_bias.sum(0).to(x.dtype)
        before = lengthened(steps.previous(out, start[:first], reverse=reverse))
        for gradient in (pre, extra) if kind == "gru" else (pre,):
            gradient[steps.n_tokens :] = 0
        if kind == "gru":  # the candidate's gradient reaches the recurrent map through r
            d_wh = torch.cat((pre[:, : 2 * size].T @ before, extra.T @ before))
        else:
            d_wh = pre.T @ before
        return (
            (pre @ w_x)[: steps.n_tokens] if ctx.needs_input_grad[0] else None,
            pre.T @ x,
            d_bias[0],
            d_wh,
            torch.cat((d_bias[0, : 2 * size], d_bias[1, 2 * size :])) if kind == "gru" else None,
            dh[:n].to(x.dtype) if ctx.needs_input_grad[5] else None,
            dc[:n].to(x.dtype) if ctx.needs_input_grad[6] else None,
            None, None, None,
        )  # fmt: skip
