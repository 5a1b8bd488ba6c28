"""AdamW and Muon, each for the parameters it suits.

Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) orthogonalises the momentum of every
hidden matrix by a Newton-Schulz iteration; embeddings, the head and vectors go to AdamW (Loshchilov
& Hutter 2019).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inkstone.errors import CheckpointError
from inkstone.nn import pointwise
from inkstone.nn.linear import Linear
from inkstone.training.config import TrainingConfig

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al. 2024: steepest slope at zero that still settles
NEWTON_SCHULZ_STEPS = 5
ADAMW_EPS = 1e-10  # as in modded-nanogpt: gradients of rare embeddings are tiny


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: W ← (1 - lr·wd) W - lr · √max(1, rows/columns) · NS(momentum).

    The factor is Jordan's: a step then changes outputs of every width alike, so one learning rate
    fits all shapes. (Moonshot's 0.2 · √max(rows, columns), Liu et al. 2025, matches AdamW's rates
    instead.) Matrices of one shape are stacked, so that a step is a few batched matmuls.

    Args:
        params: 2-D parameters.
        maps: Of parameters that hold several matrices below each other, how many (`Linear.maps`).
        lr: Learning rate; also the size of a singular value of the step.
        momentum: Nesterov momentum.
        weight_decay: Decoupled weight decay.
        dtype: Dtype of the Newton-Schulz matmuls (bf16 where it is fast: the result is the same to
            within the iteration's own error).
    """

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float = 0.02,
        *,
        maps: Mapping[nn.Parameter, int] | None = None,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.maps, self.dtype = dict(maps or {}), dtype
        self.grad_scale: Tensor | None = None  # named as in torch's fused optimizers

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient, after dividing it by `grad_scale`."""
        assert closure is None
        for group in self.param_groups:
            alike: dict[tuple[torch.Size, int], list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    alike[p.shape, self.maps.get(p, 1)].append(p)
            for (_, maps), params in alike.items():
                self._update(params, maps, group)

    def _update(self, params: list[nn.Parameter], maps: int, group: dict[str, Any]) -> None:
        gradients = [p.grad for p in params if p.grad is not None]
        if self.grad_scale is not None:
            torch._foreach_div_(gradients, self.grad_scale.item())  # a CPU's number: no wait
        for p in params:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        buffers: list[Tensor] = [self.state[p]["momentum"] for p in params]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        stacked = torch.stack([x.to(self.dtype) for x in nesterov])
        matrices = stacked.unflatten(1, (maps, -1)).flatten(0, 1)
        directions = orthogonalise(matrices).reshape(stacked.shape)
        weights: list[Tensor] = list(params)
        rows, columns = matrices.shape[1:]
        scale = group["lr"] * max(1.0, rows / columns) ** 0.5
        if group["weight_decay"]:
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, directions.to(params[0].dtype).unbind(), alpha=-scale)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrices, roughly: all singular values end in [0.7, 1.2].

    Args:
        matrices: [N, rows, columns].

    Returns:
        The same shape and dtype; U Vᵀ of each matrix's singular value decomposition, up to the
        spread of the iteration (Jordan et al. 2024).
    """
    a, b, c = QUINTIC
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT.contiguous() if tall else matrices  # the Gram matrix of the short side
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


class Optimizers:
    """The optimizers of one run behind one `step`, one learning-rate multiplier, one state.

    Weight decay acts on matrices; under AdamW alone also on embeddings and head (as nanoGPT and
    GPT-3 do), beside Muon not (as modded-nanogpt does). Vectors (norms, biases) never decay.
    """

    def __init__(self, model: Any, config: TrainingConfig) -> None:
        groups = model.param_groups()
        self.parameters: list[nn.Parameter] = [p for g in groups.values() for p in g]
        assert len(self.parameters) == len(list(model.parameters())), "a parameter has no group"
        self._names = {p: name for name, p in model.named_parameters()}
        tables, matrices = groups["embedding"] + groups["head"], groups["matrix"]
        use_muon = config.optimizer == "muon" and bool(matrices)
        decay = config.weight_decay
        adam = [
            {"params": tables, "weight_decay": 0.0 if use_muon else decay},
            {"params": groups["vector"], "weight_decay": 0.0},
            {"params": [] if use_muon else matrices, "weight_decay": decay},
        ]
        self.all: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                [g for g in adam if g["params"]],
                lr=config.lr, betas=config.betas, eps=ADAMW_EPS, fused=True,
            )
        ]  # fmt: skip
        if use_muon:
            maps = {m.weight: m.maps for m in model.modules() if isinstance(m, Linear)}
            muon = Muon(
                matrices, config.matrix_lr, maps=maps, momentum=config.momentum,
                weight_decay=decay, dtype=model.compute_dtype,
            )  # fmt: skip
            self.all.append(muon)
        self._base = [[g["lr"] for g in o.param_groups] for o in self.all]

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients."""
        return pointwise.norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, multiplier: float, grad_scale: float = 1.0) -> None:
        """Update every parameter at `multiplier` times its base rate, then drop the gradients.

        Args:
            multiplier: Of the learning rates.
            grad_scale: What the gradients are divided by, in the pass that uses them.
        """
        for optimizer, bases in zip(self.all, self._base, strict=True):
            optimizer.grad_scale = torch.tensor(grad_scale)  # type: ignore[attr-defined]
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
        return {
            f"{self._names[p]}|{slot}": optimizer.state[p][slot]
            for optimizer, p, slots in self._slots()
            for slot in slots
            if slot in optimizer.state[p]
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_tensors` gave; the tensors are taken over, not copied.

        Raises:
            CheckpointError: A tensor is missing, unknown, or of another shape than its parameter.
        """
        left = dict(tensors)
        for optimizer, p, slots in self._slots():
            name = self._names[p]
            if not any(f"{name}|{slot}" in left for slot in slots):
                continue  # this parameter never had a gradient
            for slot in slots:
                value = left.pop(f"{name}|{slot}", None)
                if value is None or value.shape != (() if slot == "step" else p.shape):
                    problem = "missing" if value is None else f"of shape {list(value.shape)}"
                    raise CheckpointError(f"optimizer state {name}|{slot} is {problem}")
                optimizer.state[p][slot] = value.to(p.device)
        if left:
            raise CheckpointError(f"optimizer state {next(iter(left))} belongs to no parameter")

    def _slots(self) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter, tuple[str, ...]]]:
        for optimizer in self.all:
            muon = isinstance(optimizer, Muon)
            slots = ("momentum",) if muon else ("step", "exp_avg", "exp_avg_sq")
            for group in optimizer.param_groups:
                for p in group["params"]:
                    yield optimizer, p, slots
