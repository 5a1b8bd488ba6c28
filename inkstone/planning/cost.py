"""What a model costs and what it buys: operations, memory, and the loss to expect."""

from __future__ import annotations

import math
from dataclasses import dataclass

from inkstone.planning import constants as c


@dataclass(frozen=True)
class Budget:
    """What a shape can see in the time: `tokens` in all, of which `unique` are different."""

    parameters: int
    tokens: float
    unique: float

    @property
    def epochs(self) -> float:
        """How often the corpus is read."""
        return self.tokens / max(1.0, self.unique)


def predicted_loss(budget: Budget) -> float:
    """Nats a token that the data-constrained law expects (Muennighoff et al. 2023, eq. 5-7).

    The law was fitted on web text with a 50k vocabulary; only differences between shapes are used.
    """
    unique = min(budget.tokens, budget.unique)
    data = _worth(budget.tokens, unique, c.REPEATS_WORTH)
    fitting = min(budget.parameters, unique * c.PARAMETERS_PER_TOKEN)
    parameters = _worth(budget.parameters, fitting, c.SURPLUS_WORTH)
    return (
        c.LOSS_FLOOR_NATS
        + c.LOSS_PARAMETERS / parameters**c.LOSS_EXPONENT
        + c.LOSS_DATA / data**c.LOSS_EXPONENT
    )


def _worth(used: float, unique: float, half_life: float) -> float:
    """Effective amount of something that is used beyond its unique part: eq. 5 and 6."""
    repeats = used / unique - 1.0
    return unique * (1.0 + half_life * (1.0 - math.exp(-repeats / half_life)))


def expected_share(d_model: int) -> float:
    """Share of the matmul peak that a step of this width reaches, before any timing."""
    return c.PEAK_SHARE * d_model / (d_model + c.HALF_WIDTH)


def muon_flops(d_model: int, d_ff: int, n_layers: int) -> float:
    """Operations of Muon's five Newton-Schulz iterations over all matrices, once a step.

    An iteration on an m × n matrix (m ≤ n) is X·Xᵀ, its square, and one product with X:
    4·m²·n + 2·m³ (Jordan et al. 2024).
    """
    square = 6 * d_model**3
    short, long = min(d_model, d_ff), max(d_model, d_ff)
    wide = 4 * short**2 * long + 2 * short**3
    return 5.0 * n_layers * (4 * square + 3 * wide)


def micro_batch(
    tokens_per_step: int, seq_len: int, n_layers: int, d_model: int, *,
    device: str, free_bytes: int,
) -> int:  # fmt: skip
    """Sequences a micro-batch: a divisor of the step that fits the memory and fills the machine."""
    sequences = max(1, tokens_per_step // seq_len)
    a_token = c.ACTIVATION_BYTES * n_layers * d_model
    room = c.MEMORY_SHARE * free_bytes / a_token
    limit = min(c.MICRO_TOKENS["cuda" if device.startswith("cuda") else "cpu"], room)
    fitting = [n for n in range(1, sequences + 1) if sequences % n == 0 and n * seq_len <= limit]
    return fitting[-1] if fitting else 1
