"""How long one training step of a candidate takes here: real steps on random tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inkstone import registry
from inkstone.corpora.batches import Batch
from inkstone.planning.constants import TIMING_SECONDS
from inkstone.tasks import language_modeling
from inkstone.tasks._objective import Objective
from inkstone.training.config import TrainingConfig
from inkstone.training.optim import Optimizers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build_model(
    family: str, fields: Mapping[str, Any], precision: str, device: torch.device | str
) -> Any:
    """A freshly initialised model whose activations run in `precision`."""
    module = registry.load("models", family)
    with torch.device(device):
        model = module.Model(module.Config(**fields))
    model.compute_dtype = DTYPES[precision]
    return model


def time_steps(
    model: Any,
    batches: Iterator[Any],
    loss: Callable[[Any, Any], tuple[Tensor, int]],
    seconds: float = TIMING_SECONDS,
) -> float:
    """Mean seconds of a training step on real batches, after one to warm up.

    Args:
        model: In training mode; it is left trained a little.
        batches: As training will get them, of all lengths.
        loss: Of the task.
        seconds: Spent on it.
    """
    model.train()
    optimizers = Optimizers(model, TrainingConfig(optimizer="adamw", max_steps=1))
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 2 or time.perf_counter() - began < seconds:
        batch = next(batches).to(model.device)
        start = time.perf_counter()
        total, count = loss(model, batch)
        (total / max(1, count)).backward()
        optimizers.step(1e-9)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        times.append(time.perf_counter() - start)
    return sum(times[1:]) / len(times[1:])


class StepTimer:
    """Times whole steps (every micro-batch, the optimizer) of candidate shapes.

    Args:
        family: Of the model.
        device: Where training will run.
        seconds: Spent on each candidate, after one step to warm up.
        make: Row length → the objective; None for language modelling.
    """

    def __init__(
        self,
        family: str,
        device: torch.device,
        seconds: float = TIMING_SECONDS,
        make: Callable[[int], Objective] | None = None,
    ) -> None:
        self.family, self.device, self.seconds, self.make = family, device, seconds, make

    def __call__(self, fields: Mapping[str, Any], step: Mapping[str, Any]) -> float:
        """Seconds of one step, the median of what fits in the time.

        Args:
            fields: Of the family's `Config`.
            step: tokens_per_step, micro_batch_size, seq_len, optimizer, precision.
        """
        model = build_model(self.family, fields, step["precision"], self.device)
        model.train()
        rows = step["tokens_per_step"] // step["seq_len"]
        config = TrainingConfig(optimizer=step["optimizer"], max_steps=1)
        optimizers = Optimizers(model, config)
        batch: Any
        loss_of: Callable[[Any, Any], Any] = language_modeling.loss
        if self.make is None:
            shape = (rows, step["seq_len"])
            tokens = torch.randint(model.config.vocab_size, shape, device=self.device)
            batch = Batch(tokens, tokens)
        else:
            objective = self.make(step["seq_len"])
            batch, loss_of = objective.example(rows).to(self.device), objective.loss
        times: list[float] = []
        began = time.perf_counter()
        while not times or time.perf_counter() - began < self.seconds:
            start = time.perf_counter()
            for part in batch.split(step["micro_batch_size"]):
                loss, count = loss_of(model, part)
                (loss / count).backward()
            optimizers.step(1e-9)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        warm = sorted(times[1:] or times)
        return warm[len(warm) // 2]
