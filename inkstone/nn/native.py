"""C++ sources of this folder, compiled for this processor the first time they are needed.

`library(name)` is None where there is no C++ compiler, the compiler fails, the processor is not of
the kind that a source is for, or INKSTONE_COMPILE=0 is set; torch's own kernels then do the work.
The result is kept in the user's cache folder under a name that holds the source, the compiler and
the processor.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import mmap
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-fopenmp", "-w")
NATIVE = ("-march=native", "-mcpu=native")  # a compiler knows one of them
PATIENCE_S = 120


@functools.cache
def library(name: str) -> ctypes.CDLL | None:
    """`name`.cpp, compiled; None where it cannot be had."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if os.environ.get("INKSTONE_COMPILE") == "0" or compiler is None:
        return None
    source = FOLDER / f"{name}.cpp"
    try:
        parts = (source, *sorted(FOLDER.glob("*.h")))
        sources = "\0".join(path.read_text("utf-8") for path in parts)
        key = hashlib.sha256("\0".join((sources, compiler, _processor())).encode()).hexdigest()
        folder = Path(platformdirs.user_cache_dir("inkstone")) / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
            return None  # nobody else's code is loaded
        path = folder / f"{name}-{key[:32]}.so"
        if not path.exists():
            _compile(compiler, source, path)
        found = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    if hasattr(found, f"{name}_is_here") and found[f"{name}_is_here"]() != 1:
        return None
    if hasattr(found, f"{name}_room"):  # bytes of memory to work in
        found[f"{name}_room"].restype = ctypes.c_int64
    return found


def _compile(compiler: str, source: Path, path: Path) -> None:
    """Compile to `path`, which appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=path.parent) as temporary:
        made, out = Path(temporary) / "made.o", Path(temporary) / path.name
        for native in NATIVE:
            if _runs(compiler, *FLAGS, native, "-c", str(source), "-o", str(made)):
                break
        # OpenMP is not linked: its functions are found in the process, which is torch's OpenMP
        if not _runs(compiler, "-shared", str(made), "-o", str(out)):
            raise OSError(f"{compiler} cannot compile {source.name}")
        ctypes.CDLL(str(out))
        os.replace(out, path)


def _runs(*command: str) -> bool:
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    return done.returncode == 0


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
        flags = next((x for x in lines if x.startswith(("flags", "Features"))), "")
    except OSError:
        flags = platform.processor()
    return f"{platform.machine()} {flags}"


def arguments(*values: Any) -> list[Any]:
    """What a compiled function is given: the memory of a tensor, an int64, or the value itself."""
    return [
        ctypes.c_void_p(value.data_ptr()) if isinstance(value, Tensor)
        else ctypes.c_int64(value) if isinstance(value, int) else value
        for value in values
    ]  # fmt: skip


def memory(n_bytes: int) -> Tensor:
    """Zeros, [n_bytes] uint8, in pages of megabytes where the system has them: whoever goes through
    more memory than the caches hold then seldom has to look up where a page is."""
    block = mmap.mmap(-1, max(1, n_bytes))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8)


def share(part: Callable[[int], None], n_threads: int) -> None:
    """`part(k)` for every thread k of n, at the same time."""
    others = [_pool().submit(part, thread) for thread in range(1, n_threads)]
    part(0)
    for other in others:
        other.result()


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="native")
