"""The recurrences of `recurrence.cpp`, compiled for this processor the first time they are needed.

`library()` is None where there is no C++ compiler, the compiler fails, or INKSTONE_COMPILE=0 is
set; torch's own kernels then do the work. The result is kept in the user's cache folder under a
name that holds the source, the compiler and the processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs
import torch
from torch import Tensor

from inkstone.nn.steps import Steps

SOURCE = Path(__file__).with_name("recurrence.cpp")
KINDS = ("rnn", "lstm", "gru")
BLOCK = 16  # rows, and columns of a tile: L of the source
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-w")
NATIVE = ("-march=native", "-mcpu=native")  # a compiler knows one of them
PATIENCE_S = 120
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
def library() -> ctypes.CDLL | None:
    """The compiled recurrences; None where they cannot be had."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if os.environ.get("INKSTONE_COMPILE") == "0" or compiler is None:
        return None
    try:
        key = hashlib.sha256(
            "\0".join((SOURCE.read_text("utf-8"), compiler, _processor())).encode()
        )
        folder = Path(platformdirs.user_cache_dir("inkstone")) / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return None  # nobody else's code is loaded
        path = folder / f"recurrence-{key.hexdigest()[:32]}.so"
        if not path.exists():
            _compile(compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(compiler: str, path: Path) -> None:
    """Compile to `path`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        made = Path(temporary) / path.name
        for native in NATIVE:
            command = [compiler, *FLAGS, native, str(SOURCE), "-o", str(made)]
            done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
            if done.returncode == 0:
                os.replace(made, path)
                return
        raise OSError(f"{compiler} cannot compile {SOURCE.name}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        flags = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {flags}"


@functools.cache
def _has_bf16() -> bool:
    found = library()
    return found is not None and found.recurrence_has_bf16() == 1


def fits(dtype: torch.dtype, device: torch.device, hidden_size: int) -> bool:
    """Whether `Recurrence` can do this here."""
    if device.type != "cpu" or hidden_size % (2 * BLOCK) or library() is None:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and _has_bf16())


def run(kind: str, *, backward: bool, job: dict[str, Tensor | int | None], rows: int) -> None:
    """Run one direction of time over all steps, the rows shared out among torch's threads."""
    found = library()
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

    others = [_pool().submit(part, thread) for thread in range(1, threads)]
    part(0)
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="recurrence")


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
        ctx, x, w_x, b_x, w_h, b_h, h0, c0, steps: Steps, kind: str, reverse: bool
    ):  # type: ignore[no-untyped-def]  # fmt: skip
        """[N, D] and states [R, H] in the order of the steps → [N, H], [R, H], [R, H] or None."""
        size, first, dtype = w_h.shape[1], steps.sizes[0], x.dtype
        gates = len(w_h) // size
        room = -(-first // BLOCK) * BLOCK

        def padded(state: Tensor, dtype: torch.dtype) -> Tensor:
            return torch.nn.functional.pad(state[:first].to(dtype), (0, 0, 0, room - first))

        pre = torch.addmm(b_x, x, w_x.T)
        out = x.new_empty(len(x), size)
        extra = x.new_empty(len(x), size) if kind != "rnn" else None
        start = padded(h0, dtype)
        state = padded(h0 if c0 is None else c0, torch.float32)
        bias = None if b_h is None else b_h.float()
        job = {
            "H": size, "n_steps": len(steps.sizes), "reverse": int(reverse), "out_stride": size,
            "offsets": steps.offsets, "x": pre, "extra": extra, "bias": bias, "out": out,
            "packed": pack_forward(w_h, gates), "h": start.clone(), "next": start.clone(),
            "state": state.clone(),
        }  # fmt: skip
        run(kind, backward=False, job=job, rows=first)
        last = torch.arange(first) if reverse else steps.last
        h_n, c_n = h0.to(dtype, copy=True), None
        h_n[:first] = out[last]
        if c0 is not None:
            c_n = c0.to(dtype, copy=True)
            c_n[:first] = job["state"][:first].to(dtype)
        ctx.save_for_backward(x, w_x, w_h, out, start, state)
        ctx.made, ctx.about = (pre, extra), (steps, kind, reverse)
        ctx.set_materialize_grads(False)
        return out, h_n, c_n

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_out, d_h, d_c):  # type: ignore[no-untyped-def,override]
        if ctx.made is None:
            raise RuntimeError("the gradients of a recurrence can be taken only once")
        (pre, extra), ctx.made = ctx.made, None
        x, w_x, w_h, out, start, state = ctx.saved_tensors
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
        job = {
            "H": size, "n_steps": len(steps.sizes), "reverse": int(reverse), "out_stride": size,
            "offsets": steps.offsets, "x": pre, "extra": extra, "out": out,
            "packed": pack_backward(w_h), "d_out": None if d_out is None else d_out.contiguous(),
            "h0": start, "c0": state, "dh": dh, "dc": dc, "d_bias": d_bias,
            "scratch": x.new_empty(room, len(w_h)),
        }  # fmt: skip
        run(kind, backward=True, job=job, rows=first)
        d_bias = d_bias.sum(0).to(x.dtype)
        before = steps.previous(out, start[:first], reverse=reverse)
        if kind == "gru":  # the candidate's gradient reaches the recurrent map through r
            d_wh = torch.cat((pre[:, : 2 * size].T @ before, extra.T @ before))
        else:
            d_wh = pre.T @ before
        return (
            pre @ w_x if ctx.needs_input_grad[0] else None,
            pre.T @ x,
            d_bias[0],
            d_wh,
            torch.cat((d_bias[0, : 2 * size], d_bias[1, 2 * size :])) if kind == "gru" else None,
            dh[:n].to(x.dtype) if ctx.needs_input_grad[5] else None,
            dc[:n].to(x.dtype) if ctx.needs_input_grad[6] else None,
            None, None, None,
        )  # fmt: skip
