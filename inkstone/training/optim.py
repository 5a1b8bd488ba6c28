"""AdamW and Muon, each for the parameters it suits.

Muon (Jordan et al. 2024) orthogonalises the momentum of every hidden matrix by a Newton–Schulz
iteration; embeddings, the head and vectors go to AdamW (Loshchilov & Hutter 2019).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inkstone.training.config import TrainingConfig

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest slope at zero that still settles
NEWTON_SCHULZ_STEPS = 5


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: W ← (1 - lr·wd) W - lr · √max(1, rows/columns) · NS(momentum).

    Matrices of one shape are stacked, so that a step is a few batched matmuls.

    Args:
        params: 2-D parameters.
        lr: Learning rate; also the size of a singular value of the step.
        momentum: Nesterov momentum.
        weight_decay: Decoupled weight decay.
        dtype: Dtype of the Newton–Schulz matmuls (bf16 where it is fast: the result is the same to
            within the iteration's own error).
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float = 0.02,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for shape, params in by_shape.items():
                self._update(params, shape, group)

    def _update(self, params: list[nn.Parameter], shape: torch.Size, group: dict[str, Any]) -> None:
        updates = []
        for p in params:
            state = self.state[p]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(p)
            assert p.grad is not None
            buffer: Tensor = state["momentum"]
            buffer.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(buffer, group["momentum"]).to(self.dtype))
        directions = orthogonalise(torch.stack(updates))
        scale = group["lr"] * max(1.0, shape[0] / shape[1]) ** 0.5
        for p, direction in zip(params, directions, strict=True):
            if group["weight_decay"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction.to(p.dtype), alpha=-scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: all singular values end in [0.7, 1.2].

    Args:
        matrices: [..., rows, columns].

    Returns:
        The same shape and dtype; U Vᵀ of each matrix's singular value decomposition, up to the
        spread of the iteration (Jordan et al. 2024).
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimizers:
    """The optimizers of one run behind one `step`, one learning-rate multiplier, one state."""

    def __init__(self, model: Any, config: TrainingConfig) -> None:
        groups = model.param_groups()
        self.parameters: list[nn.Parameter] = [p for g in groups.values() for p in g]
        assert len(self.parameters) == len(list(model.parameters())), "a parameter has no group"
        names = {id(p): name for name, p in model.named_parameters()}
        use_muon = config.optimizer == "muon" and bool(groups["matrix"])
        adam_groups = [
            {"params": groups["embedding"] + groups["head"], "weight_decay": 0.0},
            {"params": groups["vector"], "weight_decay": 0.0},
        ]
        if not use_muon:
            adam_groups[0]["weight_decay"] = config.weight_decay
            adam_groups.append({"params": groups["matrix"], "weight_decay": config.weight_decay})
        adam_groups = [g for g in adam_groups if g["params"]]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(adam_groups, lr=config.lr, betas=config.betas, eps=1e-10, fused=True)
        ]
        if use_muon:
            self.all.append(
                Muon(
                    groups["matrix"],
                    config.matrix_lr,
                    momentum=config.momentum,
                    weight_decay=config.weight_decay,
                    dtype=model.compute_dtype,
                )
            )
        self._base = [[g["lr"] for g in o.param_groups] for o in self.all]
        self._names = [
            [names[id(p)] for g in o.param_groups for p in g["params"]] for o in self.all
        ]

    def step(self, multiplier: float) -> None:
        """Update every parameter at `multiplier` times its base rate, then drop the gradients."""
        for optimizer, bases in zip(self.all, self._base, strict=True):
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["lr"] = base * multiplier
            optimizer.step()
        self.zero_grad()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for p in self.parameters:
            p.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """All optimizer state as named tensors, for safetensors: `<parameter>|<slot>`."""
        tensors = {}
        for optimizer, names in zip(self.all, self._names, strict=True):
            params = [p for g in optimizer.param_groups for p in g["params"]]
            for name, p in zip(names, params, strict=True):
                for slot, value in optimizer.state.get(p, {}).items():
                    tensors[f"{name}|{slot}"] = torch.as_tensor(value)
        return tensors

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; unknown and missing names are an error (KeyError)."""
        left = dict(tensors)
        for optimizer, names in zip(self.all, self._names, strict=True):
            params = [p for g in optimizer.param_groups for p in g["params"]]
            slots = (
                ("momentum",) if isinstance(optimizer, Muon) else ("step", "exp_avg", "exp_avg_sq")
            )
            for name, p in zip(names, params, strict=True):
                if not any(f"{name}|{slot}" in left for slot in slots):
                    continue  # this parameter never had a gradient
                state = optimizer.state[p]
                for slot in slots:
                    value = left.pop(f"{name}|{slot}")
                    if slot != "step" and value.shape != p.shape:
                        raise KeyError(f"{name}|{slot} has shape {tuple(value.shape)}")
                    state[slot] = value.clone()
        if left:
            raise KeyError(next(iter(left)))
