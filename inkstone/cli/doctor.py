"""`inkstone doctor`: what this machine is, how fast, and what that implies."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from inkstone.cli import options

EXTRAS = {  # extra: (modules, what they bring)
    "data": (("pyarrow", "ftfy"), "Parquet files, mojibake repair"),
    "web": (("trafilatura",), "main text of web pages"),
    "zh": (("jieba",), "Chinese text cut into words"),
    "eval": (("sacrebleu", "sklearn"), "BLEU and chrF, bags of words"),
    "vectors": (("numba",), "word vectors trained by compiled loops"),
    "track": (("tensorboard",), "TensorBoard logs"),
}


def command(
    device: options.Device = "auto",
    seconds: Annotated[float, typer.Option(min=0.05, help="Time spent measuring.")] = 1.5,
    json: options.Json = False,
) -> None:
    """Report what this machine is, how fast, and what that implies.

    Python, torch, cores, instruction sets, measured rates, memory, disk, extras.
    """
    import json as encoder

    facts = gather(device, seconds)
    if json:
        print(encoder.dumps(facts, indent=2))
        return
    width = max(len(name) for name, _, _ in lines(facts))
    for name, value, implies in lines(facts):
        print(f"{name:{width}}  {value}" + (f"\n{'':{width}}    → {implies}" if implies else ""))


def gather(device: str, seconds: float) -> dict[str, Any]:
    """Everything that is reported, as plain values."""
    import importlib.util
    import platform
    import sys

    import torch

    from inkstone import __version__
    from inkstone import device as machine

    where = machine.pick_device(device)
    build = torch.version.cuda or getattr(torch.version, "hip", None)
    return {
        "inkstone": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torch_build": f"CUDA {build}" if build else "CPU",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": machine.measure(str(where), seconds).to_dict(),
        "precision": str(machine.training_dtype(where)).removeprefix("torch."),
        "extras": {
            extra: all(importlib.util.find_spec(m) is not None for m in modules)
            for extra, (modules, _) in EXTRAS.items()
        },
    }


def lines(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, what it implies) for people."""
    machine, rates = facts["machine"], facts["machine"]["matmul_gflops"]
    sets = machine["instruction_sets"]
    free, total = machine["memory_free_bytes"] / 1e9, machine["memory_total_bytes"] / 1e9
    disk = machine["disk_free_bytes"] / 1e9
    peak = rates["bf16" if facts["precision"] == "bfloat16" else "fp32"]
    ten_minutes = 600 * peak * 1e9 * 0.35  # operations at a third of the peak
    size = (ten_minutes / 120) ** 0.5  # C = 6·N·D with D = 20·N (Hoffmann et al. 2022)
    result = [
        ("inkstone", facts["inkstone"], ""),
        ("python", f"{facts['python']}  {facts['executable']}", ""),
        ("torch", f"{facts['torch']}  ({facts['torch_build']} build)", _torch(facts)),
        ("processor", f"{machine['name']}, {machine['cores']} cores, {machine['threads']} threads",
         "" if machine["threads"] >= machine["cores"] or machine["device"] != "cpu"
         else "OMP_NUM_THREADS limits the threads: unset it to use every core"),
        ("instructions", ", ".join(sets) or "none that matter", _instructions(sets)),
        ("matmul", f"fp32 {rates['fp32']:,.0f} GFLOP/s, bf16 {rates['bf16']:,.0f} GFLOP/s "
         "(measured)", f"training runs in {facts['precision']}; in ten minutes a model of about "
         f"{size / 1e6:.1f} million parameters is well spent"),
        ("memory speed", f"{machine['bandwidth_gb_s']:.1f} GB/s (measured)",
         "a model of a billion bytes generates at most "
         f"{machine['bandwidth_gb_s'] / 2:.0f} tokens a second"),
        ("gpu", facts["gpu"] or "none", "" if facts["gpu"] else "everything runs on the processor"),
        ("memory", f"{free:.1f} GB free of {total:.1f} GB",
         f"training takes 16 bytes a parameter and some: up to about {free / 24:.1f} billion"),
        ("disk", f"{disk:.1f} GB free here",
         "" if disk > 5 else "little: a run keeps several checkpoints of 12 bytes a parameter"),
        ("compiler", machine["compiler"] or "none",
         "" if machine["compiler"] else "training.compile cannot be used"),
    ]  # fmt: skip
    for extra, present in facts["extras"].items():
        what = EXTRAS[extra][1]
        result.append(
            (f"extra {extra}", "installed" if present else "missing",
             "" if present else f"for {what}: pip install 'inkstone[{extra}]'")
        )  # fmt: skip
    return result


def _torch(facts: dict[str, Any]) -> str:
    if facts["torch_build"] == "CPU" and facts["gpu"] is None:
        return "no GPU can be used with this build"
    return "" if facts["gpu"] else "a GPU build, but no GPU is visible here"


def _instructions(sets: list[str]) -> str:
    if "AMX bf16" in sets or "AVX-512 bf16" in sets:
        return "bf16 matmuls run in hardware"
    return "" if "AVX-512" in sets else "without AVX-512, expect modest speed"
