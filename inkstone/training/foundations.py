"""What the course of a run depends on, and what becomes of a run whose foundations have changed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from inkstone.errors import RunError
from inkstone.nn import native
from inkstone.training.config import TrainingConfig

FREE = {  # settings that change nothing of what is learned
    "save_every", "save_minutes", "keep_checkpoints", "log_every", "tensorboard",
}  # fmt: skip
LAST_BITS = {  # may change between sessions: the run goes on, but no longer bit for bit
    "torch", "threads", "device", "inkstone", "compiled",
    "training.micro_batch_size", "training.compile", "training.activation_checkpointing",
}  # fmt: skip


def foundations(model: Any, config: TrainingConfig, device: torch.device) -> dict[str, str]:
    """Model, settings and torch build, by name; the caller adds the hashes of the data."""
    settings = config.model_dump(exclude=FREE)
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "device": str(device),
        "compiled": str(device.type == "cpu" and native.library("pointwise") is not None),
        **{f"training.{key}": str(value) for key, value in settings.items()},
        **{f"model.{key}": str(value) for key, value in model.config.model_dump().items()},
    }


def compare(then: dict[str, str], now: dict[str, str]) -> list[str]:
    """Check that a run may go on.

    Returns:
        A sentence for the user where only the last bits can differ.

    Raises:
        RunError: Data, tokenizer, model or settings are others; names them.
    """
    changed = [k for k in sorted(then.keys() | now.keys()) if then.get(k) != now.get(k)]
    details = {k: f"{k}: {_short(then.get(k))} then, {_short(now.get(k))} now" for k in changed}
    grave = [details[k] for k in changed if k not in LAST_BITS]
    if grave:
        raise RunError(
            f"the run cannot be continued, what it depends on has changed ({'; '.join(grave)})",
            fix="put it back as it was, or start a new run",
        )
    if changed:
        listed = "; ".join(details.values())
        return [f"something has changed ({listed}): training goes on, but not bit for bit"]
    return []


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """Ask CUDA for kernels whose result does not depend on chance; those of a CPU never do."""
    if device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # costs time and decides nothing
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def _short(value: str | None) -> str:
    return "none" if value is None else value if len(value) <= 40 else f"{value[:12]}…"
