"""What this machine is and how fast: device, precision, threads, memory, measured rates.

Choices that other rooms make (bf16 or fp32, how large a model ten minutes can train) follow from
rates measured here, never from a table of product names. torch is imported inside functions, so
that `inkstone --help` stays fast.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inkstone.errors import DeviceError

if TYPE_CHECKING:
    import torch

INSTRUCTION_SETS = {  # our name: the kernel's flag
    "AVX2": "avx2",
    "AVX-512": "avx512f",
    "AVX-512 bf16": "avx512_bf16",
    "AVX-512 VNNI": "avx512_vnni",
    "AMX bf16": "amx_bf16",
    "AMX int8": "amx_int8",
}
BF16_PAYS = 1.5  # bf16 is chosen when its measured matmul rate is at least this many times fp32's


@dataclass(frozen=True)
class Machine:
    """Measured facts about this machine.

    Rates are in GFLOP/s (a multiply and an add are two operations) and GB/s (10⁹ bytes read plus
    written); sizes in bytes.
    """

    device: str
    name: str
    cores: int
    threads: int
    instruction_sets: tuple[str, ...]
    torch_version: str
    matmul_gflops: dict[str, float]
    bandwidth_gb_s: float
    memory_total_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    compiler: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def peak_gflops(self) -> float:
        """The faster of the two measured matmul rates: the denominator of every utilisation."""
        return max(self.matmul_gflops.values())


def pick_device(name: str = "auto") -> torch.device:
    """CUDA where it is, the CPU elsewhere; or the device that was named.

    fp32 is then fp32 on a GPU, too: cuDNN's recurrences would round their factors to 10 bits (TF32)
    unless told otherwise, as torch's matmuls do not.

    Raises:
        DeviceError: The device that was named is not present.
    """
    import torch

    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"device {name!r} cannot be used here: {str(error).splitlines()[0]}",
            fix="use 'auto', 'cpu' or 'cuda'; `inkstone doctor` shows what is present",
        ) from error
    return device


def tune_allocator() -> bool:
    """Let glibc keep freed tensors instead of giving their pages back to the kernel.

    By default every tensor of 32 MB or more is mapped afresh and each of its pages faults again at
    every step: half of a GPT-2 step on a CPU. Large tensors are also asked for in huge pages, where
    torch has made none before. Returns whether the setting took (glibc only).
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first large tensor
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3
    return bool(mallopt(m_mmap_threshold, 1 << 30) and mallopt(m_trim_threshold, (1 << 31) - 1))


def training_dtype(device: torch.device | str = "cpu", precision: str = "auto") -> torch.dtype:
    """The dtype that activations run in: bf16 where this machine is measured to be fast at it.

    Args:
        device: Where training runs.
        precision: "auto" (measure), "fp32" or "bf16".
    """
    import torch

    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    rates = measure(str(device)).matmul_gflops
    return torch.bfloat16 if rates["bf16"] >= BF16_PAYS * rates["fp32"] else torch.float32


@functools.cache
def measure(device: str = "cpu", seconds: float = 0.5) -> Machine:
    """Measure this machine once a process, in about `seconds`.

    Args:
        device: "cpu" or "cuda".
        seconds: Time spent on the micro-benchmarks in all.
    """
    import torch

    where = torch.device(device)
    inner, outer = (8192, 8192) if where.type == "cuda" else (1024, 2048)
    rates = {}
    chance = torch.Generator(where).manual_seed(0)  # no number of a seeded run is used up
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        left = torch.randn(outer, inner, device=where, generator=chance).to(dtype)
        right = torch.randn(inner, outer, device=where, generator=chance).to(dtype)
        product = functools.partial(torch.mm, left, right, out=left.new_empty(outer, outer))
        best = _best_time(product, seconds / 3, where)
        rates[name] = 2 * outer**2 * inner / best / 1e9
    source = torch.ones(1 << (26 if where.type == "cuda" else 24), device=where)
    target = torch.empty_like(source)
    best = _best_time(lambda: target.copy_(source), seconds / 3, where)
    total, free = memory(where)
    return Machine(
        device=str(where),
        name=_device_name(where),
        cores=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instruction_sets=instruction_sets(),
        torch_version=torch.__version__,
        matmul_gflops=rates,
        bandwidth_gb_s=2 * source.numel() * source.element_size() / best / 1e9,
        memory_total_bytes=total,
        memory_free_bytes=free,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        compiler=shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"),
    )


def memory(device: torch.device | str = "cpu") -> tuple[int, int]:
    """Total and free memory in bytes, of the GPU or of the host (its container's limit)."""
    import torch

    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total, free
    facts = {}
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            key, value = line.split(":")
            facts[key] = int(value.split()[0]) * 1024
        total, free = facts["MemTotal"], facts["MemAvailable"]
    except (OSError, KeyError, ValueError):
        total = free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        total, free = min(total, limit), min(free, max(0, limit - used))
    except (OSError, ValueError):
        pass  # no container limit
    return total, free


def instruction_sets() -> tuple[str, ...]:
    """The vector instruction sets that matter for matmuls and that this CPU has."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    flags = next((set(x.split()) for x in text.splitlines() if x.startswith("flags")), set())
    return tuple(name for name, flag in INSTRUCTION_SETS.items() if flag in flags)


def _device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return next(x.split(":")[1].strip() for x in text.splitlines() if "model name" in x)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _best_time(work: Any, seconds: float, device: torch.device) -> float:
    """Fastest time of one call, in seconds: the least disturbed by whatever else runs."""
    import torch

    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    work()
    wait()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        wait()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best
